"""What the pages tell a reader to type is run, with fewer images.

A Python block is run, unless a comment before it says what it needs: `<!-- needs: … -->`. Commands under
`<!-- run -->` are run one after the other in an empty folder, with `<!-- run: photos -->` beside a folder of
images. python.md and extending.md have tests of their own (test_front, test_additions).
"""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from consistune.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {"python.md", "extending.md"}
BLOCK = re.compile(r"(?:<!-- (run|needs)(?:: ([^>]*))? -->\n)?```(python|)\n(.*?)```", re.DOTALL)
FEW = {
    "train": ["train.images=128", "train.batch=64", "train.snapshots=[]", "train.trackers=[]"],
    "evaluate": ["--samples", "16", "--metrics", "fd"],
}
"""What is added to a command so that it ends in seconds."""


def blocks(kind: str) -> list[tuple[str, str, str]]:
    """(page, what stands beside it, code) of all blocks that are to be run."""
    found = []
    for page in PAGES:
        for word, what, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            python = language == "python" and word != "needs" and page.name not in ELSEWHERE
            if python if kind == "python" else word == "run":
                found.append((page.name, what, code))
    return found


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder and cache; the classifier that measures is trained for one epoch."""
    monkeypatch.setattr("consistune.metrics.classifier.EPOCHS", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def photos(folder: Path) -> None:
    """Two classes of twelve grey images of 8×10 pixels, so that --size 8 makes digits' sizes of them."""
    random = np.random.default_rng(0)
    for name, base in (("dark", 40), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = random.normal(base, 20, (8, 10)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.mark.parametrize(("page", "what", "code"), blocks("command"), ids=lambda x: x if ".md" in x else "")
def test_commands_run(page: str, what: str, code: str, place: Path) -> None:
    if what == "photos":
        photos(place / "photos")
        code = code.replace("--size 16", "--size 8")
    for line in code.strip().splitlines():
        words = line.split("  #")[0].split()[1:]
        words += FEW.get(words[0], []) if "--dry-run" not in words else []
        result = CliRunner().invoke(app, words)
        assert result.exception is None or result.exit_code == 0, f"{line}: {result.exception!r}"


@pytest.mark.parametrize(("page", "what", "code"), blocks("python"), ids=lambda x: x if ".md" in x else "")
def test_python_runs(page: str, what: str, code: str) -> None:
    few = re.sub(r"images=\d\d+_000(, batch=256)?", "images=128", code)
    few = few.replace('evaluate(model, "digits")', 'evaluate(model, "digits", samples=32)')
    exec(compile(few, page, "exec"), {"__name__": "page"})


def test_there_is_something_to_run() -> None:
    pages = {page for page, _, _ in blocks("command")}
    assert pages >= {"own-images.md", "choose-method.md", "deploy.md"}
    assert {page for page, _, _ in blocks("python")} >= {"README.md", "deploy.md"}
