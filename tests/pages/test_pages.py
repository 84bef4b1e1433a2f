"""Pages: what a name can do to them, what they contain, and that each is one file."""

import base64
import io
from pathlib import Path

import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from consistune.pages.evaluation import evaluation_page
from consistune.pages.experiment import experiment_page
from consistune.pages.page import Table, render
from consistune.pages.pictures import grid_png
from consistune.pages.plots import Axis, Panel, PanelGrid, Plot
from tests.support.html import ParsedPage

HOSTILE = "<script>alert(\"x\")</script> & 'y'\n--></pre></title></svg>{{ 7 * 7 }}$z$"
"""Markup, both quotes, a newline, end tags and a comment's end, a template's and a formula's marks."""


def evaluation(name: str = "1 evaluation", pictures=None, curves=None, **changed) -> ParsedPage:
    summary = {
        "fid": {"mean": 12.3456, "min": 12.0, "standard_error": 0.25},
        "fid_bias": {"mean": 1.5, "min": 1.5, "standard_error": 0.0},
        "recall": {"mean": 0.25, "min": 0.25, "standard_error": None},
    }
    results = {
        "rows": [{"name": name, "seeds": [[0, 9], [10, 19]], "summary": summary}],
        "search": None,
        "model": {"path": name, "sha256": "ab"},
        "data": {"name": name, "sha256": "cd"},
        "reference": {"source": name, "images": None},
        "extractor": {"name": "fid", "identity": name, "file_sha256": "ef"},
        "samples": 10,
        "labels": name,
        "environment": {
            "command": ["consistune", "evaluate", name], "consistune": "1", "torch": "2", "device": "cpu",
            "processes": 1,
        },
        "seconds": 3.0,
        "when": "now",
    }  # fmt: skip
    return ParsedPage(evaluation_page(results | changed, pictures or {}, curves or {}))


def record(name: str, summary=()) -> dict:
    return {
        "title": name,
        "paper": {"figure": name, "claim": name},
        "notes": [name],
        "summary": list(summary),
        "command": name,
        "code": name,
        "hardware": {"torch": "2", "processor": name, "threads": 1, "cores": 2, "devices": []},
        "seeds": [0, 1],
        "images": 1000,
        "teacher_images": 0,
        "minutes": 1.0,
        "recipes": {name: "ab"},
    }


def experiment(name: str, summary=(), plots=None, pictures=None) -> ParsedPage:
    return ParsedPage(experiment_page(record(name, summary), name, plots or {}, pictures or {}))


def plot(name: str) -> Plot:
    return Plot({name: ([1, 2], [3, 4])}, Axis(name), Axis(name), name)


def words(page: ParsedPage, tag: str) -> str:
    return "".join(page.texts[tag])


IMAGES = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: evaluation(HOSTILE, {HOSTILE: {"samples": IMAGES}}, {f"evaluate/{HOSTILE}/loss": ([1], [2])}),
        lambda: experiment(
            HOSTILE,
            [{HOSTILE: HOSTILE}],
            {"a": plot(HOSTILE), "b": PanelGrid([Panel(HOSTILE, {HOSTILE: [(0.0, 0.0)]})], 1, HOSTILE)},
            {HOSTILE: grid_png(IMAGES)},
        ),
    ],
    ids=["evaluation", "experiment"],
)
def test_a_name_stays_text_wherever_it_is_printed(make) -> None:
    page = make()
    assert "script" not in page.tags
    assert HOSTILE in words(page, "title")
    assert words(page, "h1") == HOSTILE
    assert HOSTILE in words(page, "th") + words(page, "td")
    assert words(page, "pre").count(HOSTILE) >= 1
    assert "alert" in words(page, "text")  # matplotlib breaks it at the newline
    assert page.tags.count("h1") == page.tags.count("title") == 1


def test_a_caption_is_also_the_words_of_its_picture() -> None:
    page = experiment("t", pictures={HOSTILE: grid_png(IMAGES)})
    assert page.values("img", "alt") == [f"Samples: {HOSTILE}"]
    assert words(page, "figcaption") == HOSTILE


def test_a_page_is_one_file_with_every_picture_and_plot_in_it() -> None:
    png = grid_png(IMAGES)
    page = experiment("t", plots={"a": plot("a"), "b": plot("b")}, pictures={"p": png})
    (source,) = page.values("img", "src")
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == png
    assert page.tags.count("svg") == 2
    assert not {"link", "script", "iframe"} & set(page.tags)
    assert all(link.startswith("#") for tag, name, link in page.attributes if name.endswith("href"))


def test_a_template_without_a_value_that_it_needs_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="about"):
        render("experiment.html", record=record("t"), figures=[], pictures=[], summary=Table([], []))


def test_an_error_and_a_bias_are_in_the_cell_of_their_measure() -> None:
    page = evaluation()
    assert words(page, "td") == "fid12.35 ± 0.25  Recall25.0%"
    assert page.texts["span"] == ["(min 12)", "(bias +1.5)"]


def test_a_deviation_is_in_the_cell_of_its_mean_and_a_missing_value_is_a_dash() -> None:
    rows = [
        {"run": "a", "images": 12000, "fid": 2.0, "fid_std": 0.5},
        {"run": "b", "images": 12000, "late": None},
    ]
    page = experiment("t", rows)
    assert page.texts["td"] == ["a", "12,000", "2 ± 0.5", "–", "b", "12,000", "–", "–"]


def test_each_suspicious_sample_is_above_its_training_image() -> None:
    count, side = 11, 48  # no enlargement; 8 columns, so the second row is not full
    grey = torch.stack([torch.arange(count) + 1, torch.arange(count) + 101], 1).flatten()
    pairs = grey.to(torch.uint8)[:, None, None, None].expand(-1, 1, side, side)
    page = evaluation(pictures={"row": {"worst": pairs, "memorised": pairs[:0]}})
    (source,) = page.values("img", "src")  # no picture of no pairs
    image = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    cell = side + 1
    heights = range(image.height // cell + 1)
    seen = [[image.getpixel((x * cell + 1, y * cell + 1)) for x in range(8)] for y in heights]
    first, rest = list(range(1, 9)), list(range(9, 12))
    assert seen[0] == first
    assert seen[1] == [g + 100 for g in first]
    assert [row[:3] for row in seen[2:]] == [rest, [g + 100 for g in rest]]
    assert {g for row in seen[2:] for g in row[3:]} == {128}


def test_the_pages_name_the_program_and_the_command() -> None:
    assert words(evaluation("runs/a"), "title") == "consistune evaluate: runs/a"
    assert words(experiment("Figure"), "title") == "consistune reproduce: Figure"


def test_the_command_to_repeat_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    page = evaluation("a model")
    assert words(page, "pre").startswith("consistune evaluate 'a model'\n")
