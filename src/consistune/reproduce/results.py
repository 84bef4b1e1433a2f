"""What an experiment gives, and how it is written: CSV, JSON, plots, a page."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

from consistune.pages.experiment import experiment_page
from consistune.pages.pictures import grid_png
from consistune.pages.plots import Figure
from consistune.pages.table import as_csv
from consistune.reproduce.runs import Run
from consistune.reproduce.spec import Description
from consistune.system.files import write_atomically
from consistune.system.host import machine, package_version

Row = dict[str, Any]


@dataclass
class Outcome:
    """The result of an experiment.

    Attributes:
        rows: of data.csv, one for each seed and setting.
        summary: the rows over seeds, of data.json and of the page.
        plots: by file name. pictures: uint8 images [n, C, H, W] by title, drawn in `columns` columns.
        recipes: run → digest of its recipe.
        images: the most training images that a run saw. teacher_images: those that its teacher saw.
        minutes: of training, teachers included; None where no run is kept: the time of the call is reported.
        notes: what a reader should know beside the figures.
    """

    rows: list[Row]
    summary: list[Row]
    plots: dict[str, Figure] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    columns: int = 10
    recipes: dict[str, str] = field(default_factory=dict)
    images: int = 0
    teacher_images: int = 0
    minutes: float | None = None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_runs(cls, runs: Sequence[Run], rows: list[Row], summary: list[Row]) -> "Outcome":
        """An outcome with the recipes, images and minutes of its runs and their teachers."""
        teachers = [run.teacher for run in runs if run.teacher]
        return cls(
            rows,
            summary,
            recipes={run.name: run.digest for run in runs},
            images=max(run.images for run in runs),
            teacher_images=max((teacher.images for teacher in teachers), default=0),
            minutes=sum({run.folder: run.minutes for run in [*runs, *teachers]}.values()),
        )


def over_seeds(rows: Sequence[Row], by: Sequence[str], values: Sequence[str]) -> list[Row]:
    """One line for the rows with the same `by`: mean, standard deviation (_std) and number of seeds.

    A value that no row has is left out; the deviation of one seed is None.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    summary = []
    for key, members in groups.items():
        line: Row = dict(zip(by, key, strict=True)) | {"seeds": len(members)}
        for value in values:
            numbers = [float(m[value]) for m in members if m.get(value) is not None]
            if numbers:
                line[value] = mean(numbers)
                line[f"{value}_std"] = stdev(numbers) if len(numbers) > 1 else None
        summary.append(line)
    return summary


def series(
    summary: Sequence[Row], name: str, x: str, y: str, **chosen: Any
) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Lines with error bars from the rows of a summary with the `chosen` values: a line for each `name`."""
    lines: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for row in summary:
        if all(row[key] == value for key, value in chosen.items()):
            xs, ys, errors = lines.setdefault(str(row[name]), ([], [], []))
            xs.append(float(row[x]))
            ys.append(row[y])
            errors.append(row.get(f"{y}_std") or 0.0)
    return lines


RECORD = ("data.json", ("experiment", "summary"))
"""The file by which an experiment's folder is known, which is written first, and some of its keys."""


def write(
    folder: Path, name: str, experiment: Description, outcome: Outcome, facts: Mapping[str, Any]
) -> Path:
    """Write data.json, data.csv, plots (SVG and PNG), pictures (PNG) and the page, whose path is returned."""
    record = {
        "experiment": name,
        "title": experiment.title,
        "paper": experiment.paper.model_dump(),
        **facts,
        "seeds": sorted({row["seed"] for row in outcome.rows if "seed" in row}),
        "recipes": outcome.recipes,
        "images": outcome.images,
        "teacher_images": outcome.teacher_images,
        "code": code_version(),
        "hardware": machine(),
        "summary": outcome.summary,
        "notes": outcome.notes,
    }
    write_atomically(folder / "data.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "data.csv", as_csv(outcome.rows))
    for key, plot in outcome.plots.items():
        plot.write_svg(folder / f"{key}.svg")
        write_atomically(folder / f"{key}.png", plot.png())
    pictures = {}
    for number, (title, images) in enumerate(outcome.pictures.items()):
        pictures[title] = grid_png(images, outcome.columns)
        write_atomically(folder / f"samples-{number}.png", pictures[title])
    page = folder / "report.html"
    write_atomically(page, experiment_page(record, experiment.about, outcome.plots, pictures))
    return page


def code_version() -> str:
    """The package's version and a hash of its source, to say what code made a result."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in {".py", ".yaml", ".html", ".css"}:
            total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return f"{package_version()}+{total.hexdigest()[:12]}"
