"""Line plots as SVG, readable in grey (every line has its own dash and marker), and panels of samples."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sct.pictures import grid, to_pil

STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
    ("#000000", (0, (5, 1)), "v"),
    ("#999999", (0, (1, 1)), "x"),
)
"""Colours of Okabe and Ito, told apart by most colour-blind readers."""


@dataclass(frozen=True)
class Axis:
    """A label and, where it is logarithmic, that."""

    label: str
    log: bool = False


Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def lines(series: Series, x: Axis, y: Axis, title: str) -> str:
    """One SVG with a line for each name → (xs, ys)."""
    return _scalable(_drawn(series, x, y, title, "svg").decode())


def lines_png(series: Series, x: Axis, y: Axis, title: str) -> bytes:
    """The picture of `lines` as PNG."""
    return _drawn(series, x, y, title, "png")


def _drawn(series: Series, x: Axis, y: Axis, title: str, format: str) -> bytes:
    plt = _pyplot()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sct", "font.size": 11}):
        figure, axes = plt.subplots(figsize=(5.6, 3.7), layout="constrained")
        for (name, (xs, ys)), (colour, dash, marker) in zip(series.items(), STYLES, strict=False):
            axes.plot(
                xs, ys, linestyle=dash, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name
            )
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        axes.set_title(title, fontsize=11)
        if x.log:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        if y.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            low, high = axes.get_ylim()
            if high < 30 * low:  # with more decades the labels between them would overlap
                axes.yaxis.set_minor_formatter("{x:g}")
            else:
                axes.yaxis.set_minor_formatter("")
        axes.grid(True, which="both", alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False)
        buffer = io.BytesIO()
        metadata = {"Date": None} if format == "svg" else None  # the same numbers make the same file
        figure.savefig(buffer, format=format, metadata=metadata, dpi=150)
        plt.close(figure)
    return buffer.getvalue()


def _scalable(svg: str) -> str:
    """The bare <svg> element, sized by its page: its own width and height taken away."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + body


def panels(pictures: Mapping[str, Tensor], columns: int) -> bytes:
    """One PNG with a grid of samples for each name → uint8 images [N, C, H, W], side by side."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(pictures), figsize=(3.4 * len(pictures), 2.3), layout="constrained")
    for axis, (name, images) in zip(axes, pictures.items(), strict=True):
        axis.imshow(to_pil(grid(images, columns)), cmap="gray", interpolation="nearest")
        axis.set_title(name, fontsize=11)
        axis.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
