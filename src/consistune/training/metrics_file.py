"""metrics.jsonl in a run's folder: the numbers of a training, one JSON object a line."""

import json
import math
from pathlib import Path
from typing import Any

from consistune.system.files import write_atomically

NAME = "metrics.jsonl"
EVALUATION = "evaluate/"
"""The prefix of the numbers that a measure of the averaged model gave."""


class MetricsFile:
    """The records of a run, in the order of training.

    Each record has the keys `images` and `step`, and numbers by name (`training.log`). JSON
    has no NaN and no infinity: such a number is `null` in the file, and is read as NaN.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / NAME

    def append(self, record: dict[str, Any]) -> None:
        """Add a record at the end."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))

    def records(self) -> list[dict[str, Any]]:
        """All records. A line that is not complete, or no record, is left out: the run may be writing it."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_record(record):
                records.append({key: math.nan if value is None else value for key, value in record.items()})
        return records

    def truncate(self, images: int) -> None:
        """Remove the records that were written when more than `images` images had been seen."""
        kept = [record for record in self.records() if record["images"] <= images]
        write_atomically(self.path, "".join(map(_line, kept)))


def _is_record(found: Any) -> bool:
    """Whether it is an object of numbers, with whole ones for images and step."""
    if not isinstance(found, dict) or {type(found.get("images")), type(found.get("step"))} != {int}:
        return False
    return all(value is None or isinstance(value, int | float) for value in found.values())


def _line(record: dict[str, Any]) -> str:
    numbers = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(numbers, allow_nan=False) + "\n"
