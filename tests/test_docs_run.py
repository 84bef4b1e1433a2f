"""What the pages tell a reader to type is run, a page after the other, each in an empty folder of its own.

Every block of commands and of Python is run in its page's order, with fewer images, and with small files in
the place of those that the page takes for granted (`tests/support/stand_ins.py`). A block that cannot be run
here has a comment before it, which says what it needs: `<!-- needs: Docker -->`. It is counted as skipped,
with that reason. `<!-- needs: extra onnx -->`: run where that extra is installed.

README and the pages of Start run in `make test`, all others with `pytest -m docs`. extending.md and python.md
have tests of their own (test_additions.py, test_front.py).
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from consistune.cli.main import app
from consistune.metrics.sheet import read_protocol
from consistune.recipe import read_recipe
from tests.support.small_jobs import small_create, small_scales
from tests.support.stand_ins import FILES, OF_PAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
START = {
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("index", "install", "questions", "neighbours")),
}
ELSEWHERE = {"extending.md", "python.md"}
BLOCK = re.compile(r"(?:<!-- needs: ([^>]*) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
COMMANDS = ("", "bash", "sh")
NAMES = {"RECIPE": "digits-edm", "MODEL": "runs/NAME", "PREPARED": "digits"}
"""What stands for any recipe, model, data → one of them."""
SHORT = [
    (r"(images|every_images)=\d[\d_]+", r"\1=128"),
    (r"--until \S+", "--until 256"),
    (r"--time \S+", "--time 40s --size 8 --latents none --yes"),
    (r"--size 16", "--size 8"),
    (r"--scale cpu", "--scale smoke"),
    (r"--nproc-per-node 8", "--standalone --nproc-per-node 2"),
]
"""What makes a command or a call end in seconds."""
FEW = {
    "train": ["train.images=128", "train.batch=64", "train.snapshots=[]", "train.trackers=[]"],
    "evaluate": ["--samples", "16", "--seeds", "1"],
}
"""What is added to a command."""
NETWORKS = {
    "emoji64-latent-edm": "{kind: patch-unet, patch: 1, model_channels: 8}",
    "mnist10k-edm": "{kind: patch-unet, model_channels: 8}",
}


@dataclass(frozen=True)
class Block:
    """A fenced block. needs: what keeps it from being run, or None."""

    page: Path
    needs: str | None
    language: str
    code: str

    @property
    def missing(self) -> bool:
        """Whether what it needs is not here."""
        extra = re.fullmatch(r"extra (\w+)", self.needs or "")
        return self.needs is not None and (extra is None or find_spec(extra[1]) is None)


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(page, needs or None, language, code) for needs, language, code in found]


ALL = [block for page in PAGES for block in blocks(page) if page.name not in ELSEWHERE]
RUN = [page for page in PAGES if any(block.page == page and not block.missing for block in ALL)]


def shortened(code: str) -> str:
    for pattern, short in SHORT:
        code = re.sub(pattern, short, code)
    return code


def words_of(line: str) -> list[str]:
    """The words of `consistune …` after its name, with what makes it short."""
    words = [NAMES.get(word, word.replace("RECIPE", NAMES["RECIPE"])) for word in shlex.split(line)[1:]]
    few = list(FEW.get(words[0], []))
    if {"--resume", "--until", "--dry-run"} & set(words):
        few = []
    if words[0] == "train":
        few += [f"network={NETWORKS[words[1]]}"] if words[1] in NETWORKS else []
        given = {word.split("=")[0] for word in few}
        words = [word for word in words if word.split("=")[0] not in given]
    if words[0] == "evaluate" and "--metrics" not in words:
        few += ["--metrics", "fd"]
    return [*words, *few]


def run_command(line: str) -> None:
    """A line of a page. `pip` and `make` have a test of their own."""
    program = line.split()[0]
    if program == "consistune":
        words = words_of(line)
        result = CliRunner().invoke(app, words)
        fine = (0, 1) if words[0] == "check" else (0,)
        assert result.exit_code in fine, f"{line}: {result.exception!r}\n{result.output}"
    elif program in ("python", "torchrun"):
        words = shlex.split(line)[1:]
        if program == "python":
            words[0] = str(ROOT / words[0])
        else:
            at = words.index("consistune")
            words = ["-m", "torch.distributed.run", *words[:at], *words_of(" ".join(words[at - 1 :])[3:])]
            words.insert(words.index("-m", 1) + 1, "consistune")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'benchmarks'}"}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    else:
        assert program in ("pip", "make"), f"what is this line for? {line}"


def lines_of(code: str) -> list[str]:
    """The commands of a block without comments, continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [bare for line in lines if (bare := re.sub(r"(^|\s+)#.*", "", line).strip())]


def run_block(block: Block, scope: dict[str, Any]) -> None:
    code = shortened(block.code)
    if block.language in COMMANDS:
        for line in lines_of(code):
            run_command(line)
    elif block.language == "python":
        code = code.replace('evaluate(model, "digits")', 'evaluate(model, "digits", samples=32)')
        exec(compile(code.replace(", batch=256", ""), block.page.name, "exec"), scope)
    elif block.language == "yaml":
        run_yaml(code)
    else:
        assert block.language == "text", f"no way to run {block.language!r}"


def run_yaml(code: str) -> None:
    """A recipe, sections of one, or the sheet of a file of features is read."""
    keys = yaml.safe_load(code)
    if "input" in keys:
        Path("features.yaml").write_text(code, encoding="utf-8")
        assert read_protocol(Path("features.pt")).name == keys["name"]
    elif "extends" in keys:
        Path("page.yaml").write_text(code, encoding="utf-8")
        assert read_recipe("page.yaml") == read_recipe("cifar10-sct")
    else:
        read_recipe("digits-sct", [f"{key}={yaml.safe_dump(keys[key], width=999)}" for key in keys])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder and cache; `play` returns; measuring, `create` and `reproduce` are small."""
    small_create(monkeypatch)
    monkeypatch.setattr("consistune.metrics.classifier.EPOCHS", 1)
    waits = SimpleNamespace(Event=lambda: SimpleNamespace(wait=lambda: None))
    monkeypatch.setattr("consistune.cli.play.threading", waits)
    small_scales(tmp_path / "scales.yaml", monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def parameters(pages: list[Path]) -> list[Any]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=() if page in START else pytest.mark.docs)
        for page in pages
    ]


@pytest.mark.parametrize("page", parameters(RUN))
def test_a_page_runs(page: Path, place: Path) -> None:
    here = [block for block in blocks(page) if not block.missing]
    text = "\n".join(shortened(block.code) for block in here)
    for word, name in NAMES.items():
        text = re.sub(rf"\b{word}\b", name, text)
    for name, make in (FILES | OF_PAGES.get(page.name, {})).items():
        first = re.search(rf"(?<![\w./-]){re.escape(name)}(?![\w.-])", text)
        made = re.search(rf"(prepare \S+ |--out |=){re.escape(name)}(?![\w.-])", text)
        if first and not (made and made.end() == first.end()):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            make(place / name)
    scope: dict[str, Any] = {"__name__": "page"}
    for block in here:
        run_block(block, scope)


NEED = [block for block in ALL if block.needs]


@pytest.mark.parametrize("block", NEED, ids=lambda block: f"{block.page.name}: {block.needs}")
def test_a_block_that_needs_more(block: Block) -> None:
    """Skipped with its reason, so that it is counted. With the extra, its page's test runs it."""
    if block.missing:
        pytest.skip(f"{block.page.name} needs {block.needs}")


def test_make_and_pip_lines_name_what_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [line for block in ALL if block.language in COMMANDS for line in lines_of(block.code)]
    makes = [line for line in lines if line.startswith("make ")]
    pips = [line for line in lines if line.startswith("pip ")]
    assert makes
    assert pips
    for line in makes:
        done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    for line in pips:
        for listed in re.findall(r"consistune\[([\w,]+)\]", line):
            assert set(listed.split(",")) <= extras["optional-dependencies"].keys(), line
