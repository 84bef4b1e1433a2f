"""Labels: arrays of them, EDM's dataset.json (2206.00364), and tables of file names and labels."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.sources.base import SUFFIXES
from consistune.errors import UserError

MAX_CLASSES = 1_000_000
MAX_FILE_BYTES = 1 << 28
UNLABELLED = ("all",)
"""The class names of a source without labels."""


def check_labels(labels: Any, count: int, where: str, first: int = 0) -> NDArray[np.int64]:
    """Integer labels from `first` on → int64 [count] from 0. Raises UserError for other labels."""
    values = np.asarray(labels)
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise UserError(
            f"{count} images need as many integer labels, got {values.dtype} {values.shape}", where
        )
    values = values.astype(np.int64) - first
    if count and not 0 <= int(values.min()) <= int(values.max()) < MAX_CLASSES:
        raise UserError(f"labels must begin at {first}, got {int(values.min()) + first}", where)
    return values


def numbered_names(labels: NDArray[np.int64]) -> tuple[str, ...]:
    """The names "0", "1", … of labels that have no others."""
    return tuple(str(k) for k in range(int(labels.max(initial=0)) + 1))


@dataclass(frozen=True)
class LabelTable:
    """File names in their order, with labels and class names; groups where the table has them."""

    names: list[str]
    values: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: list[str] | None = None

    @classmethod
    def unlabelled(cls, names: list[str]) -> "LabelTable":
        return cls(names, np.zeros(len(names), np.int64), UNLABELLED)

    def match(
        self, present: Iterable[str], skipped: list[tuple[str, str]]
    ) -> tuple["LabelTable", list[tuple[str, str]]]:
        """The table without the images that are not present, and (name, reason) of all that are left out."""
        images, known = set(present), set(self.names)
        explained = {name for name, _ in skipped}
        rows = [row for row, name in enumerate(self.names) if name in images]
        missing = [
            (name, "has a label, but is missing")
            for name in self.names
            if name not in images and name not in explained
        ]
        unlabelled = [(name, "has no label") for name in sorted(images - known)]
        table = replace(
            self,
            names=[self.names[row] for row in rows],
            values=self.values[np.array(rows, np.int64)],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )
        return table, [*skipped, *missing, *unlabelled]


def read_label_file(path: Path) -> LabelTable:
    """A CSV of `file,label` (a first line that names no image is a heading), or JSON: see `parse_table`."""
    where = str(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"more than {MAX_FILE_BYTES} bytes of labels", where)
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".csv":
            return parse_table(json.loads(text), where)
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where) from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"is neither CSV nor JSON ({str(error)[:80]!a})", where) from error
    if rows and not rows[0][0].lower().endswith(SUFFIXES):
        rows = rows[1:]
    if any(len(row) != 2 for row in rows):
        raise UserError("a line does not have two entries, file and label", where)
    return parse_table([[name.strip(), _number_or_word(label.strip())] for name, label in rows], where)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else text


def parse_table(table: Any, where: str) -> LabelTable:
    """Labels from JSON.

    {"labels": [[file, label], …]} with, in parallel, `group`, and `class_names`; or the list alone; or
    {file: label}. Labels are numbers from 0, or words, which are numbered in sorted order.
    Raises UserError for anything else, for a file named twice, and for a number without a name.
    """
    extra: dict[str, Any] = {}
    if isinstance(table, dict) and "labels" in table:
        extra, table = table, table["labels"]
    if isinstance(table, dict):
        table = list(table.items())
    if not isinstance(table, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in table):
        raise UserError("has no list of [file, class] under 'labels'", where)
    names = [_relative(name, where) for name, _ in table]
    if len(set(names)) < len(names):
        raise UserError("names a file twice", where)
    values, class_names = _number([label for _, label in table], extra.get("class_names"), where)
    groups = extra.get("group")
    if groups is not None and (not isinstance(groups, list) or len(groups) != len(names)):
        raise UserError(f"'group' must be a list of {len(names)} entries", where)
    return LabelTable(names, values, class_names, None if groups is None else [str(g) for g in groups])


def _relative(name: Any, where: str) -> str:
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{str(name)[:80]!a} is not a name below the folder", where)
    return name.removeprefix("./")


def _number(labels: list[Any], names: Any, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as numbers, and the classes' names."""
    if labels and all(type(label) is str for label in labels):
        known = tuple(names) if isinstance(names, list) else tuple(sorted(set(labels)))
        index = {str(name): k for k, name in enumerate(known)}
        unknown = next((label for label in labels if label not in index), None)
        if unknown is not None:
            raise UserError(f"the label {unknown[:80]!a} is not among class_names", where)
        return np.array([index[label] for label in labels], np.int64), tuple(index)
    bad = next((label for label in labels if type(label) is not int or not 0 <= label < MAX_CLASSES), None)
    if bad is not None or not labels:
        raise UserError(f"labels must be numbers from 0, or words; got {str(bad)[:80]!a}", where)
    values = np.array(labels, np.int64)
    count = int(values.max()) + 1
    if names is None:
        return values, numbered_names(values)
    if not isinstance(names, list) or len(names) < count:
        raise UserError(f"class_names must name the {count} classes", where)
    return values, tuple(str(name) for name in names)
