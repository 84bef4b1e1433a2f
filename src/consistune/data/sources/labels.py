"""Labels by file name: EDM's dataset.json (2206.00364), and simpler tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.errors import UserError

MAX_CLASSES = 1_000_000


@dataclass(frozen=True)
class Labels:
    """File names in their order, with labels, class names and groups (None where there are none)."""

    names: list[str]
    values: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: list[str] | None

    def matched(
        self, there: Iterable[str], skipped: list[tuple[str, str]]
    ) -> tuple[list[str], NDArray[np.int64], list[str] | None, list[tuple[str, str]]]:
        """Names, labels and groups of the images that are `there`, in the table's order; what is skipped."""
        known = set(self.names)
        present = set(there)
        away = {name for name, _ in skipped}
        keep = [name in present for name in self.names]
        missing = [
            (name, "has a label, but is missing")
            for name, here in zip(self.names, keep, strict=True)
            if not here and name not in away
        ]
        unlabelled = [(name, "has no label") for name in sorted(present - known)]
        names = [name for name, here in zip(self.names, keep, strict=True) if here]
        groups = None
        if self.groups is not None:
            groups = [group for group, here in zip(self.groups, keep, strict=True) if here]
        return names, self.values[np.array(keep, bool)], groups, [*skipped, *missing, *unlabelled]


def read_table(table: Any, where: str) -> Labels:
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
    values, class_names = _numbered([label for _, label in table], extra.get("class_names"), where)
    groups = extra.get("group")
    if groups is not None and (not isinstance(groups, list) or len(groups) != len(names)):
        raise UserError(f"'group' must be a list of {len(names)} entries", where)
    return Labels(names, values, class_names, None if groups is None else [str(group) for group in groups])


def _relative(name: Any, where: str) -> str:
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{str(name)[:80]!a} is not a name below the folder", where)
    return name.removeprefix("./")


def _numbered(labels: list[Any], names: Any, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
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
        return values, tuple(str(k) for k in range(count))
    if not isinstance(names, list) or len(names) < count:
        raise UserError(f"class_names must name the {count} classes", where)
    return values, tuple(str(name) for name in names)
