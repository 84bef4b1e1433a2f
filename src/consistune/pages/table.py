"""Tables as CSV files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consistune.system.files import write_atomically


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A CSV table with the columns of all rows, and numbers in full precision."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table whole."""
    write_atomically(path, as_csv(rows))
