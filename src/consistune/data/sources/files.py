"""Folders of image files: sub-folders as classes (ImageNet's tree is one), or a file of labels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from consistune.data.sources.base import (
    HELD_OUT_NAMES,
    MAX_IMAGE_BYTES,
    SUFFIXES,
    TOO_LARGE,
    Raw,
    Source,
    SourceOptions,
    Unreadable,
    printable,
)
from consistune.data.sources.labels import UNLABELLED, read_label_file
from consistune.errors import UserError

LINK = "is a symbolic link, which is not followed"


def read_files(task: tuple[str, list[str]]) -> Iterator[Raw]:
    root, names = task
    for name in names:
        try:
            # O_NOFOLLOW: the file may have become a link after the folder was listed.
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            yield Unreadable(f"cannot be read ({error.strerror})")
            continue
        yield data if len(data) <= MAX_IMAGE_BYTES else TOO_LARGE


@dataclass(kw_only=True)
class ImageFiles(Source):
    """Images that are files below the folder `path`: their relative names and sizes in bytes."""

    items_are_files: ClassVar[bool] = True
    read = staticmethod(read_files)
    names: list[str]
    sizes: list[int]

    def name(self, item: int) -> str:
        return printable(self.names[item])

    def task(self, first: int, last: int) -> Any:
        return str(self.path), self.names[first:last]

    def item_files(self) -> Iterator[tuple[str, int]]:
        return zip(self.names, self.sizes, strict=True)


@dataclass
class Listing:
    """The image files below a folder (name → bytes), and (name, reason) of the entries that are left out."""

    sizes: dict[str, int]
    skipped: list[tuple[str, str]]

    @classmethod
    def of(cls, root: Path, below: str = "") -> "Listing":
        files: list[tuple[str, int]] = []
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
                            files.append((name, entry.stat().st_size))
                        else:
                            skipped.append((name, "is not a plain file"))
        return cls(dict(sorted(files)), sorted(skipped))

    def add(self, other: "Listing") -> None:
        self.sizes |= other.sizes
        self.skipped += other.skipped


def folders_in(path: Path) -> list[str]:
    """Names of the sub-folders, sorted, without links."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))


def open_folder(path: Path, options: SourceOptions, _work: Path) -> ImageFiles:
    """A folder of images.

    - with a file of labels (`options.labels`, or EDM's `dataset.json` in the folder): labels by file name;
    - with a sub-folder `train` that has sub-folders: those are the classes, and `val` (or `validation`,
      `test`) with sub-folders of the same names is the held-out set. ImageNet's tree is this;
    - with sub-folders: those are the classes;
    - flat: no labels.

    Classes are numbered in the sorted order of their folders' names (for ImageNet: of the synsets), images in
    the sorted order of their paths.
    """
    table = Path(options.labels) if options.labels is not None else path / "dataset.json"
    if options.labels is not None or table.is_file():
        return _labelled_by_file(path, table)
    folders = folders_in(path)
    if "train" in folders and (classes := folders_in(path / "train")):
        return _tree(path, classes, folders)
    listing = Listing.of(path)
    if not listing.sizes:
        raise UserError(f"holds no image ({', '.join(SUFFIXES)})", str(path))
    if folders:
        return _by_folder(path, listing, folders, depth=0)
    return ImageFiles(
        kind="a folder of images",
        path=path,
        labels=np.zeros(len(listing.sizes), np.int64),
        class_names=UNLABELLED,
        labelled=False,
        skipped=listing.skipped,
        names=list(listing.sizes),
        sizes=list(listing.sizes.values()),
    )


def _tree(path: Path, classes: list[str], folders: list[str]) -> ImageFiles:
    listing = Listing.of(path, "train")
    notes = []
    has_held_out = False
    for name in [name for name in HELD_OUT_NAMES if name in folders]:
        inner = folders_in(path / name)
        if not inner:
            notes.append(f"{name}/ has no class folders and was left out")
            continue
        if not set(inner) <= set(classes):
            unknown = sorted(set(inner) - set(classes))[0]
            raise UserError(f"{name}/{unknown} is a class that train/ has not", str(path))
        if has_held_out:
            notes.append(f"{name}/ was left out: there is another held-out set")
            continue
        held_out = Listing.of(path, name)
        has_held_out = bool(held_out.sizes)
        listing.add(held_out)
    source = _by_folder(path, listing, classes, depth=1)
    own = np.array([not name.startswith("train/") for name in source.names])
    source.own_held_out = own if own.any() else None
    source.notes += notes
    return source


def _by_folder(path: Path, listing: Listing, classes: list[str], depth: int) -> ImageFiles:
    """An image's class is the folder at that depth of its name."""
    outside = [name for name in listing.sizes if name.count("/") <= depth]
    names = [name for name in listing.sizes if name.count("/") > depth]
    index = {name: k for k, name in enumerate(classes)}
    synsets = bool(classes) and all(n[:1] == "n" and n[1:].isdigit() and len(n) == 9 for n in classes)
    return ImageFiles(
        kind="ImageNet's tree of synsets" if synsets else "a folder of class folders",
        path=path,
        labels=np.array([index[name.split("/")[depth]] for name in names], np.int64),
        class_names=tuple(classes),
        skipped=[*listing.skipped, *((name, "lies outside the class folders") for name in outside)],
        names=names,
        sizes=[listing.sizes[name] for name in names],
    )


def _labelled_by_file(path: Path, table: Path) -> ImageFiles:
    listing = Listing.of(path)
    labels, skipped = read_label_file(table).match(listing.sizes, listing.skipped)
    if not labels.names:
        raise UserError("names no image of the folder", str(table), f"write names as below {path}")
    return ImageFiles(
        kind="a folder of images with a file of labels",
        path=path,
        labels=labels.values,
        class_names=labels.class_names,
        groups=labels.groups,
        containers=[table],
        skipped=skipped,
        names=labels.names,
        sizes=[listing.sizes[name] for name in labels.names],
    )
