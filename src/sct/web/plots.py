"""Line plots as SVG text, readable in grey: every line has its own dash and marker."""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STYLES = (
    ("#0072B2", "-", "o"),
    ("#D55E00", "--", "s"),
    ("#009E73", "-.", "^"),
    ("#CC79A7", ":", "D"),
)
"""Colours of Okabe and Ito, told apart by most colour-blind readers."""


@dataclass(frozen=True)
class Axis:
    """A label and, where it is logarithmic, that."""

    label: str
    log: bool = False


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: Axis, y: Axis, title: str) -> str:
    """One SVG with a line for each name → (xs, ys)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sct", "font.size": 11}):
        figure, axes = plt.subplots(figsize=(5.6, 3.7), layout="constrained")
        for (name, (xs, ys)), (colour, dash, marker) in zip(series.items(), STYLES, strict=False):
            axes.plot(xs, ys, dash, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)
        axes.set_xlabel(x.label)
        axes.set_ylabel(y.label)
        axes.set_title(title, fontsize=11)
        if x.log:
            axes.set_xscale("log")
        if y.log:
            axes.set_yscale("log")
        axes.grid(True, which="both", alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"',
        r"\1",
        re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1),
        count=1,
    )
