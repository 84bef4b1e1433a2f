"""Every kind of part can be added from outside the package. The code is that of docs/extending.md."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from consistune.errors import UserError
from consistune.evaluation.search import all_settings
from consistune.metrics.table import metric_class
from consistune.nn.store import build
from consistune.recipe import words
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "extending.md"
SOURCE = REPOSITORY / "src" / "consistune"


def blocks(language: str) -> list[str]:
    """The page's fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's module as an installed distribution, and the page's recipes."""
    folder = tmp_path_factory.mktemp("additions")
    module, _ = blocks("python")
    (folder / "additions.py").write_text(module, encoding="utf-8")
    information = folder / "additions-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: additions\nVersion: 1.0\n")
    groups = tomllib.loads(blocks("toml")[0])["project"]["entry-points"]
    lines = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, recipe in zip(("tuned", "denoiser"), blocks("yaml"), strict=True):
        (folder / f"{name}.yaml").write_text(recipe, encoding="utf-8")
    return folder


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_entry_points_serve_recipes_and_commands(folder: Path) -> None:
    commands = blocks("bash")[0].splitlines()
    assert len(commands) == 4
    assert all(command.startswith("consistune ") for command in commands)
    code = f"""
import sys
from consistune.__main__ import main
for line in {commands}:
    sys.argv = line.split()
    try:
        main()
    except SystemExit as left:
        assert not left.code, line
"""
    done = python(folder, "-c", code)
    assert done.returncode == 0, done.stderr
    for name, kinds in (("tuned", ("batch-mean", "fixed", "cosh", "inverse-time")), ("denoiser", ("fixed",))):
        resolved = (folder / name / "recipe.yaml").read_text(encoding="utf-8")
        assert all(f"kind: {kind}" in resolved for kind in kinds)
        config = json.loads((folder / name / "model" / "config.json").read_text(encoding="utf-8"))
        assert config["network"]["kind"] == "linear"
    results = json.loads((folder / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert results["search"]["setting"] == "heun-steps"
    assert 2 <= results["search"]["best"] <= 6
    for row in results["rows"]:
        assert 0 < row["summary"]["brightness"]["mean"] < 255
    assert results["rows"][-1]["sampler"]["steps"] == round(results["search"]["best"])


def test_the_classes_serve_in_python_and_a_name_that_is_taken_is_refused(folder: Path) -> None:
    _, code = blocks("python")
    checks = """
assert len(reports) == 2 and all(report.finite for report in reports)
assert trainer.averaged.card.is_diffusion and images.shape == (4, 1, 8, 8)
assert recipe.pairs.gap.share == 0.5
from consistune.evaluation.search import all_settings
from consistune.metrics.table import all_metrics
assert "solver-steps" in all_settings() and "mean-pixel" in all_metrics()
from additions import Brightness, FixedGap, heun_steps
from consistune.evaluation.search import register_setting
from consistune.metrics.table import register as register_metric
from consistune.recipe import register
for call in (lambda: register("gap", "sigmoid", FixedGap), lambda: register("gab", "fixed", FixedGap),
             lambda: register_metric("fd", Brightness), lambda: register_setting("eta", heun_steps)):
    try:
        call()
    except ValueError as error:
        print("refused:", error)
"""
    done = python(folder, "-c", code + checks)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("refused: ")]
    assert len(lines) == 4
    assert "SigmoidGap" in lines[0]
    assert "unknown part 'gab'" in lines[1]


@pytest.mark.parametrize(
    ("module", "read"),
    [
        ("nn.store", lambda: build({"network": {"kind": "odd"}, "precond": {"kind": "edm"}})),
        ("evaluation.search", all_settings),
        ("metrics.table", lambda: metric_class("odd")),
        ("recipe.words", words.load_entry_points.__wrapped__),
    ],
)
def test_a_broken_package_is_named(
    module: str, read: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def points(group: str, name: str = "odd") -> list[EntryPoint]:
        return [EntryPoint("gap:odd" if module == "recipe.words" else name, "no_such_module:x", group)]

    monkeypatch.setattr(f"consistune.{module}.entry_points", points)
    with pytest.raises(UserError, match=r"odd = no_such_module:x: No module named 'no_such_module'"):
        read()


def test_every_row_of_the_page_names_what_is_there() -> None:
    """The table of files and rows: each file or folder exists, and each table is defined where it says."""
    text = PAGE.read_text(encoding="utf-8")
    rows = [row.split("|")[1:-1] for row in text.splitlines() if row.startswith("| ") and "`" in row]
    assert len(rows) == 7
    for _, file, row in rows:
        for name in re.findall(r"`([a-z_/]+(?:\.py)?)`", file):
            assert (SOURCE / name).exists(), name
        where = re.findall(r"`([a-z_/]+\.py)`", row)
        tables = re.findall(r"`([A-Z]+)`", row)
        defined = (SOURCE / where[-1]).read_text(encoding="utf-8")
        assert all(re.search(rf"^{table}\b", defined, re.M) for table in tables), row
