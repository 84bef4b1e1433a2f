"""What an experiment found, and how it is written down: CSV, JSON, plots, a page."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torch import Tensor

import consistune
from consistune.pages.experiment import experiment_page
from consistune.pages.pictures import SMALLEST_SIDE, grid, png_bytes
from consistune.pages.plots import Figure
from consistune.reproduce.spec import Experiment
from consistune.system.files import write_atomically
from consistune.system.host import machine

Row = dict[str, Any]


@dataclass
class Outcome:
    """What an experiment found.

    Attributes:
        rows: data.csv, one a seed and setting. summary: the same over seeds.
        plots: by file name. pictures: uint8 images [n, C, H, W] by title, so many columns wide.
        recipes: run → digest of its recipe. images: the most that a run saw, its teacher's apart.
        minutes: of training, teachers too; None where nothing is kept between calls: then the call's own.
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


def over_seeds(rows: Sequence[Row], by: Sequence[str], values: Sequence[str]) -> list[Row]:
    """Rows with the same `by`, together: mean, standard deviation and number of seeds of each value.

    A value that a row lacks is left out; the deviation of one seed is None.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    summary = []
    for key, members in groups.items():
        line: Row = dict(zip(by, key, strict=True)) | {"seeds": len(members)}
        for value in values:
            found = [float(m[value]) for m in members if m.get(value) is not None]
            if found:
                line[value] = mean(found)
                line[f"{value}_std"] = stdev(found) if len(found) > 1 else None
        summary.append(line)
    return summary


def series(
    summary: Sequence[Row], name: str, x: str, y: str, **chosen: Any
) -> dict[str, tuple[list[float], list[float], list[float]]]:
    """Lines with error bars out of a summary: one a `name`, of rows with the `chosen` values."""
    found: dict[str, tuple[list[float], list[float], list[float]]] = {}
    for row in summary:
        if all(row[key] == value for key, value in chosen.items()):
            xs, ys, errors = found.setdefault(str(row[name]), ([], [], []))
            xs.append(float(row[x]))
            ys.append(row[y])
            errors.append(row[f"{y}_std"] or 0.0)
    return found


def write(
    folder: Path, name: str, experiment: Experiment, outcome: Outcome, facts: Mapping[str, Any]
) -> Path:
    """data.csv, data.json, SVG and PNG of each plot, PNG of each picture, and the page, whose path it is."""
    write_atomically(folder / "data.csv", as_csv(outcome.rows))
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
    for key, plot in outcome.plots.items():
        write_atomically(folder / f"{key}.svg", plot.svg())
        write_atomically(folder / f"{key}.png", plot.png())
    pictures = {}
    for number, (title, images) in enumerate(outcome.pictures.items()):
        scale = max(1, SMALLEST_SIDE // images.shape[-1])
        pictures[title] = png_bytes(grid(images, outcome.columns), scale)
        write_atomically(folder / f"samples-{number}.png", pictures[title])
    page = folder / "report.html"
    write_atomically(page, experiment_page(record, experiment.about, outcome.plots, pictures))
    return page


def as_csv(rows: Sequence[Row]) -> str:
    """A table with the columns of all rows; numbers in full."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def code_version() -> str:
    """The package's version and a hash of its source: what made a result."""
    root = Path(consistune.__file__).parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in {".py", ".yaml", ".html", ".css"}:
            total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return f"{consistune.__version__}+{total.hexdigest()[:12]}"
