"""The page of one reproduced figure or table."""

from collections.abc import Mapping, Sequence
from typing import Any

from consistune.pages.page import MISSING, Cell, Picture, Table, render
from consistune.pages.plots import Figure


def experiment_page(
    record: dict[str, Any], about: str, plots: Mapping[str, Figure], pictures: Mapping[str, bytes]
) -> str:
    """One self-contained page.

    Args:
        record: what data.json holds.
        about: what is drawn and how to read it.
        plots: file name → figure.
        pictures: title → PNG.
    """
    return render(
        "experiment.html",
        record=record,
        about=about,
        figures=list(plots.values()),
        pictures=[Picture(title, png) for title, png in pictures.items()],
        summary=_table(record["summary"]),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows with the columns of all; a deviation (`NAME_std`) is in the cell of its mean (`NAME`)."""
    columns = [c for c in dict.fromkeys(key for row in rows for key in row) if not c.endswith("_std")]
    head = [column.replace("_", " ") for column in columns]
    return Table(head, [[_cell(row.get(c), row.get(f"{c}_std")) for c in columns] for row in rows])


def _cell(value: str | float | None, deviation: float | None) -> Cell:
    if isinstance(value, str):
        return Cell(value, words=True)
    if value is None:
        return Cell(MISSING)
    text = f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return Cell(text if deviation is None else f"{text} ± {deviation:.2g}")
