"""Labels: arrays of them, EDM's dataset.json (2206.00364), and tables of file names and labels."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from consistune.data.sources.base import SUFFIXES
from consistune.errors import UserError, printable

MAX_CLASSES = 1_000_000
MAX_FILE_BYTES = 1 << 28
NUMBER = re.compile(r"(0|[1-9][0-9]{0,8})(\.0*)?")
"""A word that is a number: without leading zeros, and whole."""
NO_LABEL = {"", "nan", "none", "null", "na", "n/a", "-", "?"}
"""What other programs write for a label that is missing."""
HEADINGS = {"file", "filename", "image", "imagename", "imageid", "id", "name", "path", "filepath"}
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


@dataclass(frozen=True)
class Numbered:
    """Labels as classes: int64 [n] from 0, the classes' names, and what the user should know of it."""

    values: NDArray[np.int64]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def number_array(labels: Any, count: int, where: str) -> Numbered:
    """The labels of `count` images: integers, whole floats, booleans or words.

    Raises UserError for any other number of labels, and for others than `number_labels` takes.
    """
    values = np.asarray(labels)
    if values.shape != (count,) or values.dtype.kind not in "iufbUSO":
        what = f"{count} images need as many integer labels or words, got {values.dtype} {values.shape}"
        raise UserError(what, where, "give one for each image, in an array [images], not one-hot")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return number_labels(values.tolist(), None, where)


def number_labels(labels: list[Any], names: Any, where: str) -> Numbered:
    """Labels → classes.

    Words are numbered in sorted order, or by their place in `names`. Words that are all numbers, and floats
    that are whole, are numbers; with leading zeros they stay words, in the numbers' order. A number is the
    class itself where `names` are given, or where the labels are 0 … K − 1; else the numbers that occur are
    numbered in ascending order, and a note says so.
    Raises UserError for an empty label, a negative one, NaN and the like among numbers, another type, and a
    label beyond `names`.
    """
    if names is not None and not isinstance(names, list):
        raise UserError("class_names must be a list of names", where)
    if not labels:
        raise UserError("holds no labels", where)
    known = None if names is None else [str(name) for name in names]
    numbered = _number(labels, known, where)
    return replace(numbered, notes=numbered.notes + repeated(known or []))


def _number(labels: list[Any], known: list[str] | None, where: str) -> Numbered:
    kinds = {type(label) for label in labels}
    if kinds == {bool}:
        return _number_words([str(label) for label in labels], known, where)
    notes: tuple[str, ...] = ()
    if kinds == {str}:
        labels = [label.strip() for label in labels]
        if "" in labels:
            raise UserError(f"the label of entry {labels.index('') + 1} is empty", where)
        if not all(NUMBER.fullmatch(label) for label in labels) or set(labels) <= set(known or ()):
            notes = () if known else _check_words(labels, where)
            return replace(_number_words(labels, known, where), notes=notes)
        kinds = {float if any("." in label for label in labels) else int}
        labels = [float(label) for label in labels]
    if all(type(label) is float and label.is_integer() for label in labels):
        notes = ("the labels are floats, all of them whole",) if kinds == {float} else ()
        labels = [int(label) for label in labels]
    if not all(type(label) is int and 0 <= label < MAX_CLASSES for label in labels):
        raise _wrong(labels, _odd(labels), where)
    numbered = _number_integers(np.array(labels, np.int64), known, where)
    return replace(numbered, notes=notes + numbered.notes)


def repeated(names: Sequence[str]) -> tuple[str, ...]:
    """A note on names that several classes have, if there are any."""
    again = [name for name, count in Counter(names).items() if count > 1]
    return (f"several classes have the same name: {brief(again)}",) if again else ()


def _odd(labels: list[Any]) -> int:
    """The place of the label that cannot be one: of the rarest kind, or no whole number from 0."""
    kinds = Counter(map(_kind, labels))
    rarest = min(kinds, key=lambda kind: kinds[kind])
    if len(kinds) > 1 or rarest is not float:
        return next(k for k, label in enumerate(labels) if _kind(label) is rarest)
    wrong = [k for k, x in enumerate(labels) if not (0 <= x < MAX_CLASSES and float(x).is_integer())]
    return [*wrong, *(k for k, x in enumerate(labels) if type(x) is float)][0]


def _kind(label: Any) -> type:
    """Its type; integers and floats are one kind."""
    return float if type(label) is int else type(label)


def _wrong(labels: Sequence[Any], place: int, where: str) -> UserError:
    got = f"got {str(labels[place])[:80]!a} (entry {place + 1})"
    mixed = len(set(map(_kind, labels))) > 1
    remedy = "all must be numbers, or all words" if mixed else ""
    return UserError(f"labels must be numbers from 0, or words; {got}", where, remedy)


def _check_words(labels: list[str], where: str) -> tuple[str, ...]:
    """Notes where words and numbers are mixed, and on words that may mean that a label is missing.

    Raises UserError, where some are numbers, for negative ones and missing labels.
    """
    words = set(labels)
    numbers = {word for word in words if _is_number(word)}
    missing = {word for word in words if word.casefold() in NO_LABEL}
    bad = {word for word in numbers if word.startswith("-")} | (missing if numbers else set())
    if bad:
        raise _wrong(labels, next(k for k, word in enumerate(labels) if word in bad), where)
    mixed = numbers and words - numbers
    notes = (f"numbers and words are mixed, and taken as words: {brief(sorted(words))}",) if mixed else ()
    doubtful = brief(sorted(missing - {"none"}))  # in small letters it may be a class
    said = f"these are classes here, though they often stand for a label that is missing: {doubtful}"
    return (*notes, said) if doubtful else notes


def _is_number(word: str) -> bool:
    return word.removeprefix("-").replace(".", "", 1).isdecimal()


def _number_words(words: list[str], known: list[str] | None, where: str) -> Numbered:
    different = set(words)
    key = int if all(word.isdecimal() for word in different) else str
    names = sorted(different, key=lambda word: (key(word), word)) if known is None else known
    index = {name: k for k, name in reversed(list(enumerate(names)))}
    unknown = next((word for word in words if word not in index), None)
    if unknown is not None:
        raise UserError(f"the label {unknown[:80]!a} is not among class_names", where)
    return Numbered(np.array([index[word] for word in words], np.int64), tuple(names))


def _number_integers(values: NDArray[np.int64], known: list[str] | None, where: str) -> Numbered:
    found, index = np.unique(values, return_inverse=True)
    count = int(found[-1]) + 1
    if known is not None:
        if len(known) < count:
            raise UserError(f"class_names must name the {count} classes", where)
        return Numbered(values, tuple(known))
    names = tuple(str(number) for number in found)
    if len(found) == count:
        return Numbered(values, names)
    note = f"the labels {brief(names)} are classes 0 … {len(found) - 1}, in this order"
    return Numbered(index.astype(np.int64).reshape(-1), names, (note,))


def brief(names: Sequence[str], most: int = 8) -> str:
    """The first of the names, and how many more there are."""
    shown = ", ".join(printable(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


@dataclass(frozen=True)
class LabelTable:
    """File names in their order, with labels and class names; groups where the table has them."""

    names: list[str]
    values: NDArray[np.int64]
    class_names: tuple[str, ...]
    groups: list[str] | None = None
    notes: tuple[str, ...] = ()

    def match(
        self, present: Iterable[str], skipped: list[tuple[str, str]]
    ) -> tuple["LabelTable", list[tuple[str, str]]]:
        """The table without the images that are not present, and (name, reason) of all that are left out."""
        images = set(present)
        names = self._as_present(images)
        known, explained = set(names), {name for name, _ in skipped}
        rows = [row for row, name in enumerate(names) if name in images]
        missing = [
            (name, "has a label, but is missing")
            for name in names
            if name not in images and name not in explained
        ]
        unlabelled = [(name, "has no label") for name in sorted(images - known)]
        table = replace(
            self,
            names=[names[row] for row in rows],
            values=self.values[np.array(rows, np.int64)],
            groups=None if self.groups is None else [self.groups[row] for row in rows],
        )
        return table, [*skipped, *missing, *unlabelled]

    def _as_present(self, images: set[str]) -> list[str]:
        """The names as the images have them: in the other Unicode form, or with the suffix they lack here."""
        if images.issuperset(self.names):
            return self.names
        others: dict[str, list[str]] = {}
        for name in images.difference(self.names):
            composed = normalize("NFC", name)
            for key in {composed, composed.rpartition(".")[0]} - {""}:
                others.setdefault(key, []).append(name)
        found = [
            [] if name in images else others.get(normalize("NFC", name), []) for name in self.names
        ]  # a stem that two images have names neither
        return [match[0] if len(match) == 1 else name for name, match in zip(self.names, found, strict=True)]


def read_label_file(path: Path) -> LabelTable:
    """A CSV of `file,label` (a first line that names no image is a heading), or JSON: see `parse_table`."""
    return parse_label_file(label_bytes(path), path.suffix.lower() == ".csv", str(path))


def label_bytes(path: Path) -> bytes:
    """The content of a file of labels. Raises UserError where it cannot be read, or is too large."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"more than {MAX_FILE_BYTES} bytes of labels", str(path))
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from error


def parse_label_file(content: bytes, is_csv: bool, where: str) -> LabelTable:
    """The same, of a file's content."""
    try:
        text = content.decode("utf-8-sig")
        if not is_csv:
            return parse_table(_json(text, where), where)
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"is neither CSV nor JSON ({str(error)[:80]!a})", where) from error
    if rows and _is_heading(rows):
        rows = rows[1:]
    if any(len(row) != 2 for row in rows):
        raise UserError("a line does not have two entries, file and label", where)
    for name, label in rows:
        if not label.strip():
            raise UserError(f"the label of {name[:80]!a} is empty", where, "give it one, or remove its line")
    return parse_table([[name.strip(), label] for name, label in rows], where)


def edm_table(content: bytes, where: str) -> tuple[LabelTable | None, list[str]]:
    """The labels of a dataset.json, or None where it has none, and a note if it has other keys instead."""
    try:
        table = _json(content.decode("utf-8-sig"), where)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({str(error)[:80]!a})", where) from error
    if isinstance(table, dict) and table.get("labels") is None:
        others = brief(sorted(set(table) - {"labels"}))
        said = f"{printable(where)} has no 'labels'; these keys were not read: {others}"
        return None, [said] if others and "labels" not in table else []
    return parse_table(table, where), []


def _json(text: str, where: str) -> Any:
    """JSON's value. Raises ValueError for what is none, and UserError for a key that is there twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        again = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        if again:
            raise UserError(f"names {again[0][:80]!a} twice", where, "leave one of them")
        return dict(pairs)

    return json.loads(text, object_pairs_hook=once)


def _is_heading(rows: list[list[str]]) -> bool:
    """The first line names no image, where the others do; or it has a heading's usual words."""
    suffixed = [row[0].strip().lower().endswith(SUFFIXES) for row in rows[:2]]
    if any(suffixed):
        return not suffixed[0]
    return rows[0][0].strip().lower().replace("_", "") in HEADINGS


def parse_table(table: Any, where: str) -> LabelTable:
    """Labels from JSON.

    {"labels": [[file, label], …]} with, in parallel, `group`, and `class_names`; or the list alone; or
    {file: label}. Labels are numbers or words: see `number_labels`.
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
    if any(type(label) is bool for _, label in table):
        raise UserError("labels must be numbers from 0, or words; got true or false", where)
    numbered = number_labels([label for _, label in table], extra.get("class_names"), where)
    unread = sorted(set(extra) - {"labels", "class_names", "group"})
    notes = (f"{printable(where)}: these keys were not read: {brief(unread)}",) if unread else ()
    groups = extra.get("group")
    if groups is not None and (not isinstance(groups, list) or len(groups) != len(names)):
        raise UserError(f"'group' must be a list of {len(names)} entries", where)
    words = None if groups is None else [str(group) for group in groups]
    return LabelTable(names, numbered.values, numbered.class_names, words, numbered.notes + notes)


def _relative(name: Any, where: str) -> str:
    if not isinstance(name, str) or name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{str(name)[:80]!a} is not a name below the folder", where)
    return name.removeprefix("./")
