"""Folders of image files: sub-folders as classes (ImageNet's tree is one), or a file of labels."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from consistune.data.sources.base import MAX_IMAGE_BYTES, SUFFIXES, Raw, Reader, Source, Unreadable, shown
from consistune.data.sources.labels import Labels, read_table
from consistune.errors import UserError

HELD_OUT_NAMES = ("val", "validation", "valid", "test")
MAX_LABELS_BYTES = 1 << 28
LINK = "is a symbolic link, which is not followed"


@dataclass(kw_only=True)
class ImageFiles(Source):
    """Images that are files below `root`."""

    items_are_files: ClassVar[bool] = True
    root: Path
    names: list[str]
    sizes: list[int] = field(default_factory=list)

    def name(self, item: int) -> str:
        return shown(self.names[item])

    def task(self, first: int, last: int) -> Any:
        return str(self.root), self.names[first:last]

    def reader(self) -> Reader:
        return read_files

    def item_files(self) -> Iterator[tuple[str, int]]:
        return zip(self.names, self.sizes, strict=True)


def read_files(task: tuple[str, list[str]]) -> Iterator[Raw]:
    root, names = task
    for name in names:
        try:
            # Not following a link here closes the gap between listing and reading.
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            yield Unreadable(f"cannot be read ({error.strerror})")
            continue
        yield data if len(data) <= MAX_IMAGE_BYTES else Unreadable(f"has more than {MAX_IMAGE_BYTES} bytes")


@dataclass
class Listing:
    """The image files below a folder, and what is there but not followed."""

    names: list[str]
    sizes: list[int]
    skipped: list[tuple[str, str]]

    @classmethod
    def of(cls, root: Path, below: str = "") -> "Listing":
        found: list[tuple[str, int]] = []
        skipped: list[tuple[str, str]] = []
        pending = [below]
        while pending:
            prefix = pending.pop()
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    name = f"{prefix}/{entry.name}" if prefix else entry.name
                    if entry.is_symlink():
                        skipped.append((name, LINK))
                    elif entry.is_dir():
                        pending.append(name)
                    elif entry.name.lower().endswith(SUFFIXES):
                        if entry.is_file():
                            found.append((name, entry.stat().st_size))
                        else:
                            skipped.append((name, "is not a plain file"))
        found.sort()
        return cls([name for name, _ in found], [size for _, size in found], sorted(skipped))

    def __add__(self, other: "Listing") -> "Listing":
        return Listing(self.names + other.names, self.sizes + other.sizes, self.skipped + other.skipped)


def folders_in(path: Path) -> list[str]:
    """Names of the real sub-folders, sorted."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def open_folder(path: Path, labels: str | None) -> ImageFiles:
    """A folder of images.

    - with `labels` (a CSV or JSON file), or with EDM's `dataset.json` in it: labels by file name;
    - with a sub-folder `train` that has sub-folders: those are the classes, and `val` (or `validation`,
      `test`) with sub-folders of the same names is the held-out set. ImageNet's tree is this;
    - with sub-folders: those are the classes;
    - flat: no labels.

    Classes are numbered in the sorted order of their folders' names (for ImageNet: of the synsets), images in
    the sorted order of their paths.
    """
    if labels is None and (path / "dataset.json").is_file():
        labels = str(path / "dataset.json")
    if labels is not None:
        return _labelled_by_file(path, Path(labels))
    folders = folders_in(path)
    if "train" in folders and (inner := folders_in(path / "train")):
        return _tree(path, inner, folders)
    listing = Listing.of(path)
    if not listing.names:
        raise UserError(f"holds no image ({', '.join(SUFFIXES)})", str(path))
    if not folders:
        return ImageFiles(
            kind="a folder of images",
            path=path,
            labels=np.zeros(len(listing.names), np.int64),
            class_names=("all",),
            labelled=False,
            skipped=listing.skipped,
            root=path,
            names=listing.names,
            sizes=listing.sizes,
        )
    return _by_folder(path, listing, {name: k for k, name in enumerate(folders)}, depth=0)


def _tree(path: Path, classes: list[str], folders: list[str]) -> ImageFiles:
    listing = Listing.of(path, "train")
    notes = []
    for name in [name for name in HELD_OUT_NAMES if name in folders]:
        inner = folders_in(path / name)
        if not inner:
            notes.append(f"{name}/ has no class folders and was left out")
            continue
        if not set(inner) <= set(classes):
            unknown = sorted(set(inner) - set(classes))[0]
            raise UserError(f"{name}/{unknown} is a class that train/ has not", str(path))
        if any(n.startswith(f"{other}/") for other in HELD_OUT_NAMES for n in listing.names):
            notes.append(f"{name}/ was left out: there is another held-out set")
            continue
        listing += Listing.of(path, name)
    source = _by_folder(path, listing, {name: k for k, name in enumerate(classes)}, depth=1)
    own = np.array([not name.startswith("train/") for name in source.names])
    source.own_held_out = own if own.any() else None
    source.notes += notes
    return source


def _by_folder(path: Path, listing: Listing, classes: dict[str, int], depth: int) -> ImageFiles:
    """Classes by the folder at that depth of the images' names."""
    skipped = list(listing.skipped)
    names, sizes, labels = [], [], []
    for name, size in zip(listing.names, listing.sizes, strict=True):
        parts = name.split("/")
        if len(parts) < depth + 2:
            skipped.append((name, "lies outside the class folders"))
            continue
        names.append(name)
        sizes.append(size)
        labels.append(classes[parts[depth]])
    synsets = bool(classes) and all(n[:1] == "n" and n[1:].isdigit() and len(n) == 9 for n in classes)
    return ImageFiles(
        kind="ImageNet's tree of synsets" if synsets else "a folder of class folders",
        path=path,
        labels=np.array(labels, np.int64),
        class_names=tuple(classes),
        skipped=skipped,
        root=path,
        names=names,
        sizes=sizes,
    )


def _labelled_by_file(path: Path, table: Path) -> ImageFiles:
    listing = Listing.of(path)
    sizes = dict(zip(listing.names, listing.sizes, strict=True))
    labels = read_labels(table)
    names, values, groups, skipped = labels.matched(sizes, listing.skipped)
    if not names:
        raise UserError("names no image of the folder", str(table), f"write names as below {path}")
    return ImageFiles(
        kind="a folder of images with a file of labels",
        path=path,
        labels=values,
        class_names=labels.class_names,
        groups=groups,
        containers=[table],
        skipped=skipped,
        root=path,
        names=names,
        sizes=[sizes[name] for name in names],
    )


def read_labels(path: Path) -> Labels:
    """A CSV of `file,label` (a first line with such words is a heading), or JSON: see `read_table`."""
    where = str(path)
    try:
        if path.stat().st_size > MAX_LABELS_BYTES:
            raise UserError(f"more than {MAX_LABELS_BYTES} bytes of labels", where)
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".csv":
            return read_table(json.loads(text), where)
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where) from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"is neither CSV nor JSON ({str(error)[:80]!a})", where) from error
    if rows and not rows[0][0].lower().endswith(SUFFIXES):
        rows = rows[1:]
    if any(len(row) != 2 for row in rows):
        raise UserError("a line does not have two entries, file and label", where)
    return read_table([[name.strip(), _number(label.strip())] for name, label in rows], where)


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else text
