"""Figures as SVG for a page and PNG for a paper, readable in grey: each line has its own dash and marker."""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from consistune.pages.pictures import grid, to_pil
from consistune.system.files import write_atomically
from consistune.system.own import MARK

Style = tuple[str, Any, str]
"""A line's colour, dash and marker, as matplotlib takes them."""
STYLES: tuple[Style, ...] = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#000000", (0, (5, 1)), "v"),
    ("#999999", (0, (1, 1)), "x"),
)
"""Colours of Okabe and Ito, told apart by most colour-blind readers."""
LABELLED = {3: (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), 30: (1, 1.5, 2, 3, 5, 7), 3000: (1, 3)}
"""For a logarithmic axis that spans less than this factor: the multiples of each power of ten to label."""
LEGEND_LETTERS = 66
"""The letters that fit side by side below a plot; the sample of a line and the space after it take 8."""
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "consistune",  # the same numbers make the same file
    "text.parse_math": False,  # a name may contain dollar signs
}


class Figure(ABC):
    """Something that matplotlib draws. The same values give the same file.

    A subclass defines `draw`; `svg` and `png` may raise what it raises.
    """

    wide: ClassVar[bool] = False
    """Whether a page gives the figure its whole width."""
    font_size: ClassVar[int] = 11
    """In points, where an element has no size of its own."""

    @abstractmethod
    def draw(self, plt: Any) -> Any:
        """The matplotlib figure, made by the `pyplot` module."""

    def svg(self) -> str:
        """The bare <svg> element; the page that holds it decides its width and height."""
        text = self._file("svg").decode()
        head, body = text[text.index("<svg") :].split(">", 1)
        return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body

    def write_svg(self, path: Path) -> None:
        """Write the SVG whole."""
        write_atomically(path, self.svg())

    def png(self) -> bytes:
        """The figure as PNG, 150 dots an inch."""
        return self._file("png")

    def _file(self, format: str) -> bytes:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        with plt.rc_context(SETTINGS | {"font.size": self.font_size}):
            figure = self.draw(plt)
            metadata = {"Date": None} if format == "svg" else {"Software": MARK}
            figure.savefig(buffer, format=format, metadata=metadata, dpi=150)
            plt.close(figure)
        return buffer.getvalue()


@dataclass(frozen=True)
class Axis:
    """The label of an axis, and whether the axis is logarithmic."""

    label: str
    log: bool = False


Values = Sequence[float]
Series = Mapping[str, tuple[Values, Values] | tuple[Values, Values, Values]]
"""Name → (xs, ys), or (xs, ys, the length of each error bar up and down)."""


@dataclass(frozen=True)
class Plot(Figure):
    """A plot with a line for each name. Drawing raises ValueError for more lines than STYLES."""

    series: Series
    x: Axis
    y: Axis
    title: str

    def draw(self, plt: Any) -> Any:
        figure, axes = plt.subplots(figsize=(5.6, 3.9), layout="constrained")
        for name, (colour, dash, marker) in _styles(self.series).items():
            xs, ys, *errors = self.series[name]
            axes.errorbar(
                xs, ys, yerr=errors[0] if errors else None, linestyle=dash, color=colour, marker=marker,
                markersize=4, linewidth=1.6, elinewidth=0.9, capsize=2, label=name,
            )  # fmt: skip
        axes.set(xlabel=self.x.label, ylabel=self.y.label)
        axes.set_title(self.title, fontsize=11)
        if self.x.log:
            axes.set_xscale("log")
            _label_numbers(axes.xaxis, plt)
        if self.y.log:
            axes.set_yscale("log")
            _label_numbers(axes.yaxis, plt)
        axes.grid(True, which="both", alpha=0.25, linewidth=0.6)
        if self.series:
            columns = _legend_columns(self.series)
            figure.legend(loc="outside lower center", frameon=False, ncols=columns)
        return figure


Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """Points and paths in one plane.

    Attributes:
        points: name → (x, y) of each point. paths: name → the corners (x, y) of each path.
    """

    title: str
    points: Mapping[str, Points] = field(default_factory=dict)
    paths: Mapping[str, Sequence[Points]] = field(default_factory=dict)

    def draw(self, axes: Any, style_of: Mapping[str, Style]) -> None:
        """Draw on matplotlib's `axes`, each name in its style."""
        for name, points in self.points.items():
            colour, _, marker = style_of[name]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, linestyle="", color=colour, marker=marker, markersize=2.5, alpha=0.6)
        for name, paths in self.paths.items():
            colour, dash, marker = style_of[name]
            for path in paths:
                x, y = zip(*path, strict=True)
                axes.plot(x, y, linestyle=dash, color=colour, marker=marker, markersize=2.5, linewidth=0.9)
        axes.set_title(self.title, fontsize=9)
        axes.set_aspect("equal")


@dataclass(frozen=True)
class PanelGrid(Figure):
    """Panels in rows; a name has one style in all of them. Drawing raises ValueError for too many names."""

    panels: Sequence[Panel]
    columns: int
    title: str
    wide = True
    font_size = 9

    def draw(self, plt: Any) -> Any:
        names = dict.fromkeys(name for panel in self.panels for name in (*panel.points, *panel.paths))
        style_of = _styles(names)
        rows = -(-len(self.panels) // self.columns)
        figure, grid_of_axes = plt.subplots(
            rows, self.columns, figsize=(2.6 * self.columns, 2.7 * rows + 0.5), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes in grid_of_axes.flat[len(self.panels) :]:
            axes.axis("off")
        for axes, panel in zip(grid_of_axes.flat, self.panels, strict=False):
            panel.draw(axes, style_of)
        with_line = {name for panel in self.panels for name in panel.paths}
        handles = [
            plt.Line2D(
                [], [], color=colour, linestyle=dash if name in with_line else "", marker=marker, markersize=4
            )
            for name, (colour, dash, marker) in style_of.items()
        ]
        figure.legend(handles, list(style_of), loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(self.title, fontsize=10)
        return figure


@dataclass(frozen=True)
class SampleGrids(Figure):
    """A grid of samples for each name → uint8 images [N, C, H, W], side by side."""

    images: Mapping[str, Tensor]
    columns: int
    wide = True

    def draw(self, plt: Any) -> Any:
        count = len(self.images)
        figure, row = plt.subplots(1, count, figsize=(3.4 * count, 2.3), squeeze=False, layout="constrained")
        for axes, (name, images) in zip(row.flat, self.images.items(), strict=True):
            axes.imshow(to_pil(grid(images, self.columns)), cmap="gray", interpolation="nearest")
            axes.set_title(name, fontsize=11)
            axes.axis("off")
        return figure


def _styles(names: Collection[str]) -> dict[str, Style]:
    """A style for each name, in order. Raises ValueError for more names than STYLES."""
    if len(names) > len(STYLES):
        raise ValueError(f"{len(names)} lines cannot be told apart in grey: at most {len(STYLES)}")
    return dict(zip(names, STYLES, strict=False))


def _legend_columns(names: Collection[str]) -> int:
    """The number of columns of a legend: as many as fit, in rows of about the same length."""
    fitting = max(LEGEND_LETTERS // (max(map(len, names)) + 8), 1)
    rows = -(-len(names) // fitting)
    return -(-len(names) // rows)


def _label_numbers(axis: Any, plt: Any) -> None:
    """Plain numbers along a logarithmic axis; a short one has more of them than the powers of ten."""
    low, high = axis.get_view_interval()
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    multiples = next((numbers for factor, numbers in LABELLED.items() if high < factor * low), None)
    if multiples is not None:
        labels = [number * 10.0**power for power in range(-9, 10) for number in multiples]
        labels = [label for label in labels if low <= label <= high]
        axis.set_major_locator(plt.FixedLocator(labels) if len(labels) > 1 else plt.MaxNLocator(5))
