"""Panels of points and paths in the plane, readable in grey: every set has its own marker and dash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sct.web.plots import STABLE, STYLES, pyplot, saved, scalable

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
