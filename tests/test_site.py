"""The site, built: no broken link, and its search answers what users ask most. `make docs` runs this.

The search is lunr, as in the browser, over the index that the build writes. Skipped where mkdocs-material or
lunr are not installed (pip install "consistune[docs]").
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("material", reason="mkdocs-material is not installed")
lunr = pytest.importorskip("lunr", reason="lunr is not installed")

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = {
    "cannot reproduce number": "evaluation.html",
    "is my loss normal": "trouble.html",
    "where are weights and logs": "long-runs.html",
    "use my own images dataset": "own-images.html",
    "resume training after stop": "long-runs.html",
    "out of memory": "trouble.html",
    "which method should I choose": "choose-method.html",
    "how many images how long to train": "own-images.html",
    "multiple GPUs torchrun slurm": "cluster.html",
    "start from EDM2 checkpoint pkl": "checkpoints.html",
    "export ONNX": "deploy.html",
    "license commercial weights": "deploy.html",
}
"""What a user types → the page that answers it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def search(site: Path):
    sections = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
    fields = [{"field_name": "title", "boost": 1000}, {"field_name": "text", "boost": 1}]
    return lunr.lunr(ref="location", fields=fields, documents=sections)


@pytest.mark.parametrize(("words", "page"), QUESTIONS.items())
def test_a_search_finds_the_answer(search, words: str, page: str) -> None:
    """Among the first three pages, the list of questions itself not counted."""
    pages = list(dict.fromkeys(found["ref"].partition("#")[0] for found in search.search(words)))
    assert page in [found for found in pages if found != "questions.html"][:3], pages[:5]


def test_no_formula_became_emphasis(site: Path) -> None:
    """A star of a formula (ε*) that is not escaped begins emphasis, and vanishes."""
    for page in site.rglob("*.html"):
        article = page.read_text(encoding="utf-8").partition("<article")[2]
        for words in re.findall(r"<em>(.*?)</em>", article, re.DOTALL):
            assert not re.search("[=∫∇·]", re.sub("<.*?>", "", words)), f"{page.name}: {words}"


def test_every_question_links_to_its_answer(site: Path) -> None:
    answers = (site / "questions.html").read_text(encoding="utf-8")
    assert answers.count("<h3") == len(QUESTIONS) == 12
    for page in QUESTIONS.values():
        assert f'href="{page}' in answers
