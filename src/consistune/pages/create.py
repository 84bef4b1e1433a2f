"""The page of `consistune create`."""

from typing import Any

from consistune.pages.page import MISSING, Cell, Picture, Table, render
from consistune.pages.pictures import grid_png

HEAD = ("Model", "Evaluations", "Images a second", "Fréchet distance, %", "Novelty")
SOFT, GOOD = 4.0, 1.5
"""The tuned model's distance over the teacher's, from which the page calls it far and below which near."""


def create_page(results: dict[str, Any]) -> str:
    """The page of `create.Job.run`'s results: its JSON, and "pictures" (name → uint8 images)."""
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
        verdict=verdict(teacher.get("distance"), tuned.get("distance"), results["held_out"]),
        pictures=[Picture(name, grid_png(images, 10)) for name, images in results["pictures"].items()],
        measures=_table(results),
    )


def verdict(teacher: float | None, tuned: float | None, real: float | None) -> str:
    """What the distances mean, in plain sentences."""
    if teacher is None or tuned is None:
        return "The distances were not measured: no extractor of features fits these images here."
    ratio = tuned / max(teacher, 1e-9)
    if ratio <= GOOD:
        near = "In one evaluation the tuned model is about as near to the training images as its teacher."
    elif ratio <= SOFT:
        near = "In one evaluation the tuned model is clearly behind its teacher; longer tuning helps."
    else:
        near = "In one evaluation the tuned model is far behind its teacher: give the job more time."
    if real is None:
        return near
    if teacher > SOFT * real:
        return near + " The teacher itself is still far from real images: it needs longer training."
    return near + " The teacher is in the range of real images that were held out."


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
    if results["held_out"] is not None:
        rows.append(("Real images, held out", "", "", f"{results['held_out']:.2f}", MISSING))
    return Table(HEAD, [[Cell(cell) for cell in row] for row in rows])
