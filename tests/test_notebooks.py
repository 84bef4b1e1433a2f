"""The notebooks run from top to bottom, at small size; no outputs are kept in them."""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from consistune.models import sample

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SMALL: dict[str, dict[str, Any]] = {
    "1-first-picture": {"pictures": 2},
    "2-own-images": {"images_each": 8, "teacher_images": 640, "tuning_images": 128, "samples": 8},
    "3-score-identity": {"queries": 32, "times": (0.5, 2.0)},
    "4-own-network": {"teacher_images": 512, "tuning_images": 128},
    "5-compare-methods": {"steps": 20, "points": 50},
    "6-unet-of-diffusers": {"teacher_images": 64, "tuning_images": 64},
}


def cells(name: str) -> list[dict[str, Any]]:
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    return book["cells"]


def run(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a notebook has defined in the end, with the small values for those of its first code cell."""
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: matplotlib.pyplot.close("all"))
    code = [cell for cell in cells(name) if cell["cell_type"] == "code"]
    scope: dict[str, Any] = {"__name__": name}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"{name}, code cell {number}", "exec"), scope)
        if cell["metadata"].get("tags") == ["parameters"]:
            assert number == 0
            assert SMALL[name].keys() == scope.keys() - {"__name__", "__builtins__"}
            scope |= SMALL[name]
    return scope


@pytest.fixture(autouse=True)
def without_a_screen() -> None:
    matplotlib.use("Agg")


def test_every_notebook_is_tried_and_listed() -> None:
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names == set(SMALL)
    listed = (FOLDER.parent / "index.md").read_text(encoding="utf-8")
    assert names == set(re.findall(r"\(notebooks/(.*?)\.ipynb\)", listed))
    for name in names:
        for cell in cells(name):
            assert not cell.get("outputs")
            for target in re.findall(r"\]\((\.\./[^)#]*)", "".join(cell["source"])):
                assert (FOLDER / target).exists(), f"{name}: {target}"


def test_the_first_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = run("1-first-picture", monkeypatch)
    assert scope["images"].shape == (2, 3, 64, 64)


def test_own_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = run("2-own-images", monkeypatch)
    assert scope["data"].train.labels.bincount().tolist() == [8, 8, 8]
    stored = scope["ct"].load(scope["folder"] / "model")
    assert torch.equal(sample(stored, [3]), sample(scope["model"], [3]))


def test_the_score_identity_scatters_less(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = run("3-score-identity", monkeypatch)["rows"]
    error = {(row.estimator, row.t): row.error for row in rows}
    for t in (0.5, 2.0):
        assert error["class", t] < 1e-3 * error["one-sample", t]
        assert error["batch", t] < error["one-sample", t]


def test_own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    scope = run("4-own-network", monkeypatch)
    assert isinstance(scope["again"].network.module, scope["Mixer"])
    assert len(scope["losses"]) == 4


def test_methods_are_compared_on_a_mixture(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = run("5-compare-methods", monkeypatch)["ends"]
    assert list(ends) == ["exact", "teacher", "CD", "ECT", "SCT, batch", "SCT, all"]
    radius = ends["exact"].flatten(1).norm(dim=1)
    assert float((radius - 0.7).abs().max()) < 5 * 0.06  # the exact ends lie on the ring


def test_a_unet_of_diffusers_in_twenty_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "6-unet-of-diffusers"
    lines = [line for cell in cells(name) if cell["cell_type"] == "code" for line in cell["source"]]
    assert len([line for line in lines if line.strip()]) <= 20
    pytest.importorskip("diffusers", reason="the extra diffusers is not installed")
    monkeypatch.chdir(tmp_path)
    scope = run(name, monkeypatch)
    assert type(scope["pipe"]).__name__ == "FewStepsPipeline"
