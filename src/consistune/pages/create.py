"""The page of `consistune create`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from consistune.pages.page import MISSING, Cell, Picture, Table, counted, render
from consistune.pages.pictures import grid_png, in_pairs

HEAD = ("Model", "Evaluations", "Images a second", "Fréchet distance, %", "Novelty")
SOFT, GOOD = 4.0, 1.5
"""The tuned model's distance over the teacher's, from which the page calls it far and below which near."""
LEARNED = 0.5
"""A teacher has learned something where its distance is below this share of that of its own blurred means."""


COLUMNS = 10


def create_page(results: dict[str, Any], pictures: Sequence[Tensor]) -> str:
    """The page of `create.Job`'s results.

    pictures: uint8 images of the same noise for each of the results' rows, then training images.
    """
    rows = results["rows"]
    by = {(row["model"], row["steps"]): row for row in rows}
    teacher, tuned = by["teacher", 18], by["tuned", 1]
    return render(
        "create.html",
        results=results,
        look=results["look"],
        teacher=teacher,
        forced=by["teacher", 1],
        tuned=tuned,
        speed_up=teacher["seconds"] / tuned["seconds"],
        verdict=verdict(*(row.get("distance") for row in (teacher, by["teacher", 1], tuned))),
        pictures=_pictures(rows, pictures),
        measures=_table(results),
    )


def _pictures(rows: list[dict[str, Any]], pictures: Sequence[Tensor]) -> list[Picture]:
    """The teacher's images over the tuned model's of one step, then the others."""
    names = [f"{row['name']}, {counted(row['evaluations'], 'evaluation')}" for row in rows]
    found = {(row["model"], row["steps"]): k for k, row in enumerate(rows)}
    teacher, tuned = found["teacher", 18], found["tuned", 1]
    pairs = in_pairs(pictures[teacher], pictures[tuned], COLUMNS)
    shown = [Picture(f"{names[teacher]}; below each row: {names[tuned]}", grid_png(pairs, COLUMNS))]
    others = [(name, k) for k, name in enumerate(names) if k not in (teacher, tuned)]
    others.append(("Training images", len(rows)))
    return shown + [Picture(name, grid_png(pictures[k], COLUMNS)) for name, k in others]


def verdict(teacher: float | None, forced: float | None, tuned: float | None) -> str:
    """What the distances mean, in plain sentences.

    forced: the teacher's in one step, which gives blurred means: what a model without training would reach.
    """
    if teacher is None or forced is None or tuned is None:
        return "The distances were not measured: no extractor of features fits these images here."
    if teacher > LEARNED * forced:
        return (
            "The teacher has learned little yet: its images are hardly nearer to the training images than "
            "blurred means. Give the job more time, or smaller images."
        )
    ratio = tuned / max(teacher, 1e-9)
    if ratio <= GOOD:
        return "In one evaluation the tuned model is about as near to the training images as its teacher."
    if ratio <= SOFT:
        return "In one evaluation the tuned model is clearly behind its teacher; longer tuning helps."
    return "In one evaluation the tuned model is far behind its teacher: give the job more time."


def _table(results: dict[str, Any]) -> Table:
    def text(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        return MISSING if value is None else f"{value:.2f}"

    rows = [
        (
            row["name"],
            str(row["evaluations"]),
            f"{1 / row['seconds']:,.0f}",
            text(row, "distance"),
            text(row, "novelty"),
        )
        for row in results["rows"]
    ]
    if results["floor"] is not None:
        rows.append(("Training images, through the autoencoder", "", "", f"{results['floor']:.2f}", MISSING))
    if results["held_out"] is not None:
        count = results["held_out_images"]
        rows.append((f"Real images, {count:,} held out", "", "", f"{results['held_out']:.2f}", MISSING))
    return Table(HEAD, [[Cell(cell) for cell in row] for row in rows])
