"""Plots can be read without colour: each line has a dash and a marker that no other has."""

import re

import pytest

from consistune.pages.plots import STYLES, Axis, Panel, PanelGrid, Plot

AXIS = Axis("x")


def plot(number: int) -> Plot:
    return Plot({f"line {i}": ([0, 1], [i, i + 1], [0.1, 0.2]) for i in range(number)}, AXIS, AXIS, "t")


def test_no_two_styles_share_a_dash_or_a_marker() -> None:
    dashes, markers = ({style[i] for style in STYLES} for i in (1, 2))
    assert len(dashes) == len(markers) == len(STYLES)


def test_the_drawing_uses_them() -> None:
    svg = plot(len(STYLES)).svg()
    dashes = set(re.findall(r"stroke-dasharray: ([\d. ,]+)", svg))
    assert len(dashes) >= len(STYLES) - 1  # one is solid
    for i in range(len(STYLES)):
        assert f"line {i}" in svg


@pytest.mark.parametrize(
    "drawing",
    [
        plot(len(STYLES) + 1),
        PanelGrid([Panel("p", {str(i): [(0.0, 0.0)] for i in range(len(STYLES) + 1)})], 1, "t"),
    ],
)
def test_more_lines_than_styles_are_refused(drawing) -> None:
    with pytest.raises(ValueError, match="told apart"):
        drawing.svg()


def test_error_bars_are_as_long_as_the_spread() -> None:
    without = Plot({"a": ([0, 1], [0, 1])}, AXIS, AXIS, "t").svg()
    narrow, wide = (Plot({"a": ([0, 1], [0, 1], [e, e])}, AXIS, AXIS, "t").svg() for e in (0.01, 0.3))
    assert without.count("LineCollection") == 0
    assert narrow.count("LineCollection") > 0
    assert narrow != wide


def test_the_same_numbers_make_the_same_file() -> None:
    assert plot(3).svg() == plot(3).svg()
    assert plot(3).png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("low", "high"),
    [(128.5, 128.9), (1.1, 1.4), (7.6, 10.3), (0.36, 0.68), (0.5, 12.0), (0.03, 40.0), (1e-5, 10.0)],
)
@pytest.mark.parametrize("which", ["x", "y"])
def test_a_logarithmic_axis_names_at_least_two_of_its_numbers(low, high, which) -> None:
    log, other = (Axis("a", log=True), [low, high]), (Axis("b"), [100, 200])
    (x, xs), (y, ys) = (log, other) if which == "x" else (other, log)
    svg = Plot({"a": (xs, ys)}, x, y, "t").svg()
    numbers = [float(word) for word in re.findall(r"<text[^>]*>([\d.e-]+)</text>", svg)]
    assert sum(low <= number <= high for number in numbers) >= 2


@pytest.mark.parametrize("length", [3, 14, 18, 22, 32])
def test_the_legend_stays_within_the_picture(length) -> None:
    names = [f"{i} " + "one-sample, cap 15/16, two steps"[: length - 2] for i in range(len(STYLES))]
    svg = Plot({name: ([0, 1], [0, 1]) for name in names}, AXIS, AXIS, "t").svg()
    starts = re.findall(r'text-anchor: start" x="([-\d.]+)"', svg[svg.index('id="legend_1"') :])
    assert len(starts) == len(names)
    assert all(
        float(x) >= 30 for x in starts
    )  # room for the line's piece; it is centred, so right is as left


def test_a_plot_without_lines_is_drawn() -> None:
    assert "the title" in Plot({}, AXIS, AXIS, "the title").svg()


def test_a_name_is_no_formula() -> None:
    assert ">runs/$a$</text>" in Plot({"runs/$a$": ([0, 1], [0, 1])}, AXIS, AXIS, "t").svg()
