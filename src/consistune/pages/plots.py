"""Line plots as SVG, readable in grey (every line has its own dash and marker), and panels of samples."""

import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from consistune.pages.pictures import grid, to_pil

STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#000000", (0, (5, 1)), "v"),
    ("#999999", (0, (1, 1)), "x"),
)
"""Colours of Okabe and Ito, told apart by most colour-blind readers."""
NAMED = {3: (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), 30: (1, 1.5, 2, 3, 5, 7), 3000: (1, 3)}
"""An axis shorter than this factor → the numbers of a decade that have room for a label."""
STABLE = {"svg.fonttype": "none", "svg.hashsalt": "consistune", "font.size": 11}


@dataclass(frozen=True)
class Axis:
    """A label and, where it is logarithmic, that."""

    label: str
    log: bool = False


Values = Sequence[float]
Series = Mapping[str, tuple[Values, Values] | tuple[Values, Values, Values]]
"""Name → (xs, ys), or (xs, ys, the length of each error bar up and down)."""


class Drawing(Protocol):
    """Something that can be drawn for a page and for a paper."""

    def svg(self) -> str: ...

    def png(self) -> bytes: ...


@dataclass(frozen=True)
class Plot:
    """The lines of a plot, not yet drawn."""

    series: Series
    x: Axis
    y: Axis
    title: str

    def svg(self) -> str:
        return lines(self.series, self.x, self.y, self.title)

    def png(self) -> bytes:
        return lines_png(self.series, self.x, self.y, self.title)


def lines(series: Series, x: Axis, y: Axis, title: str) -> str:
    """One SVG with a line for each name. Raises ValueError for more lines than there are styles."""
    return scalable(_drawn(series, x, y, title, "svg").decode())


def lines_png(series: Series, x: Axis, y: Axis, title: str) -> bytes:
    """The picture of `lines` as PNG."""
    return _drawn(series, x, y, title, "png")


def _drawn(series: Series, x: Axis, y: Axis, title: str, format: str) -> bytes:
    if len(series) > len(STYLES):
        raise ValueError(f"{len(series)} lines cannot be told apart in grey: at most {len(STYLES)}")
    plt = pyplot()
    with plt.rc_context(STABLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.9), layout="constrained")
        for (name, (xs, ys, *errors)), (colour, dash, marker) in zip(series.items(), STYLES, strict=False):
            axes.errorbar(
                xs, ys, yerr=errors[0] if errors else None, linestyle=dash, color=colour, marker=marker,
                markersize=4, linewidth=1.6, elinewidth=0.9, capsize=2, label=name,
            )  # fmt: skip
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        axes.set_title(title, fontsize=11)
        if x.log:
            axes.set_xscale("log")
            _name_numbers(axes.xaxis, axes.get_xlim(), plt)
        if y.log:
            axes.set_yscale("log")
            _name_numbers(axes.yaxis, axes.get_ylim(), plt)
        axes.grid(True, which="both", alpha=0.25, linewidth=0.6)
        figure.legend(loc="outside lower center", frameon=False, ncols=_columns(series))
        return saved(plt, figure, format)


def _columns(names: Collection[str]) -> int:
    """The columns of a legend: what fits below a plot, some 66 letters, in rows of much the same length."""
    fitting = max(66 // (max(map(len, names)) + 8), 1)  # a line's piece and a space take 8
    rows = -(-len(names) // fitting)
    return -(-len(names) // rows)


def _name_numbers(axis: Any, limits: tuple[float, float], plt: Any) -> None:
    """Plain numbers along a logarithmic axis, more than the powers of ten where it is short."""
    low, high = limits
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")
    named = next((numbers for factor, numbers in NAMED.items() if high < factor * low), None)
    if named is not None:
        places = [number * 10.0**decade for decade in range(-9, 10) for number in named]
        axis.set_major_locator(plt.FixedLocator(places))


def saved(plt: Any, figure: Any, format: str) -> bytes:
    """The figure's file; the figure is closed."""
    buffer = io.BytesIO()
    metadata = {"Date": None} if format == "svg" else None  # the same numbers make the same file
    figure.savefig(buffer, format=format, metadata=metadata, dpi=150)
    plt.close(figure)
    return buffer.getvalue()


def scalable(svg: str) -> str:
    """The bare <svg> element, sized by its page: its own width and height taken away."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body


def panels(pictures: Mapping[str, Tensor], columns: int) -> bytes:
    """One PNG with a grid of samples for each name → uint8 images [N, C, H, W], side by side."""
    plt = pyplot()
    figure, axes = plt.subplots(1, len(pictures), figsize=(3.4 * len(pictures), 2.3), layout="constrained")
    for axis, (name, images) in zip(axes, pictures.items(), strict=True):
        axis.imshow(to_pil(grid(images, columns)), cmap="gray", interpolation="nearest")
        axis.set_title(name, fontsize=11)
        axis.axis("off")
    return saved(plt, figure, "png")


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """One plane.

    Attributes:
        points: name → (x, y) of each point. paths: name → the corners of each path.
        limit: of both axes; None: what there is.
    """

    title: str
    points: Mapping[str, Points] = field(default_factory=dict)
    paths: Mapping[str, Sequence[Points]] = field(default_factory=dict)
    limit: float | None = None


@dataclass(frozen=True)
class Planes:
    """Panels in rows; sets of the same name look alike in all of them."""

    panels: Sequence[Panel]
    columns: int
    title: str

    def svg(self) -> str:
        return scalable(self._drawn("svg").decode())

    def png(self) -> bytes:
        return self._drawn("png")

    def _drawn(self, format: str) -> bytes:
        names = list(dict.fromkeys(name for p in self.panels for name in (*p.points, *p.paths)))
        if len(names) > len(STYLES):
            raise ValueError(f"{len(names)} sets cannot be told apart in grey: at most {len(STYLES)}")
        styles = dict(zip(names, STYLES, strict=False))
        rows = -(-len(self.panels) // self.columns)
        plt = pyplot()
        with plt.rc_context(STABLE | {"font.size": 9}):
            figure, grid = plt.subplots(
                rows, self.columns, figsize=(2.6 * self.columns, 2.7 * rows + 0.5), squeeze=False,
                layout="constrained",
            )  # fmt: skip
            for axes in grid.flat[len(self.panels) :]:
                axes.axis("off")
            for axes, panel in zip(grid.flat, self.panels, strict=False):
                _draw(axes, panel, styles)
            drawn = {name for panel in self.panels for name in panel.paths}
            handles = {
                name: plt.Line2D(
                    [], [], color=colour, linestyle=dash if name in drawn else "", marker=marker, markersize=4
                )
                for name, (colour, dash, marker) in styles.items()
            }
            figure.legend(
                handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False
            )
            figure.suptitle(self.title, fontsize=10)
            return saved(plt, figure, format)


def _draw(axes: Any, panel: Panel, styles: Mapping[str, tuple[object, ...]]) -> None:
    for name, points in panel.points.items():
        colour, _, marker = styles[name]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, linestyle="", color=colour, marker=marker, markersize=2.5, alpha=0.6)
    for name, paths in panel.paths.items():
        colour, dash, marker = styles[name]
        for path in paths:
            x, y = zip(*path, strict=True)
            axes.plot(x, y, linestyle=dash, color=colour, marker=marker, markersize=2.5, linewidth=0.9)
    axes.set_title(panel.title, fontsize=9)
    axes.set_aspect("equal")
    if panel.limit is not None:
        axes.set_xlim(-panel.limit, panel.limit)
        axes.set_ylim(-panel.limit, panel.limit)
