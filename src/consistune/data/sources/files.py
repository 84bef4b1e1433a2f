"""Folders of image files: sub-folders as classes (ImageNet's tree is one), or a file of labels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from consistune.data.sources.base import (
    MAX_IMAGE_BYTES,
    START,
    SUFFIXES,
    TOO_LARGE,
    UNREAD_SUFFIXES,
    Raw,
    Source,
    SourceOptions,
    Unreadable,
    is_image,
)
from consistune.data.sources.beside import is_junk, passed_over
from consistune.data.sources.labels import label_bytes
from consistune.data.sources.shards import labelled_tree
from consistune.data.sources.tree import Files
from consistune.errors import printable

LINK = "is a symbolic link, which is not followed (--follow-links)"


def read_files(task: tuple[str, list[str], bool]) -> Iterator[Raw]:
    root, names, links = task
    # O_NOFOLLOW: the file may have become a link after the folder was listed.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW)
    for name in names:
        try:
            descriptor = os.open(os.path.join(root, name), flags)
            with open(descriptor, "rb") as file:
                data = file.read(MAX_IMAGE_BYTES + 1)
        except OSError as error:
            yield Unreadable(f"cannot be read ({error.strerror})")
            continue
        yield data if len(data) <= MAX_IMAGE_BYTES else TOO_LARGE


@dataclass(kw_only=True)
class ImageFiles(Source):
    """Images that are files below the folder `path`: their relative names, and `Listing.images` of each."""

    items_are_files: ClassVar[bool] = True
    read = staticmethod(read_files)
    names: list[str]
    stats: list[tuple[int, int]]
    links: bool = False

    def name(self, item: int) -> str:
        return printable(self.names[item])

    def task(self, first: int, last: int) -> Any:
        return str(self.path), self.names[first:last], self.links

    def item_files(self) -> Iterator[tuple[str, int]]:
        return ((name, size) for name, (size, _) in zip(self.names, self.stats, strict=True))

    def item_times(self) -> Iterator[int]:
        return (changed for _, changed in self.stats)


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        images: image → (bytes, the time of its last change in nanoseconds).
        others: the other files.
        skipped: (name, reason) of entries that are left out.
        passed: hidden folders and files, and those that a system or this program made.
    """

    images: dict[str, tuple[int, int]]
    others: list[str]
    skipped: list[tuple[str, str]]
    passed: list[str]

    @classmethod
    def of(cls, root: Path, links: bool = False) -> "Listing":
        """The listing; symbolic links are followed, each folder once, or left out."""
        listing = cls({}, [], [], [])
        pending, seen = [""], {_identity(root)}
        while pending:
            prefix = pending.pop()
            with os.scandir(root / prefix) as entries:
                for entry in entries:
                    name = f"{prefix}/{entry.name}" if prefix else entry.name
                    if is_junk(entry.name):
                        listing.passed.append(name)
                    elif entry.is_symlink() and not links:
                        listing.skipped.append((name, LINK))
                    elif entry.is_dir():
                        if is_unfinished(root / name):
                            listing.passed.append(name)
                        elif not links:
                            pending.append(name)
                        elif (identity := _identity(root / name)) in seen:
                            listing.skipped.append((name, "leads to a folder that is read already"))
                        else:
                            seen.add(identity)
                            pending.append(name)
                    else:
                        listing._add(root, name, entry)
        listing.images = dict(sorted(listing.images.items()))
        listing.skipped.sort()
        return listing

    def _add(self, root: Path, name: str, entry: os.DirEntry[str]) -> None:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix in UNREAD_SUFFIXES:
            self.skipped.append((name, f"is an image of a kind that is not read ({suffix})"))
        elif suffix in SUFFIXES and not entry.is_file():
            self.skipped.append((name, "is not a plain file"))
        elif entry.is_file():
            if is_image(suffix, lambda: start_of(root / name)):
                stat = entry.stat()
                self.images[name] = stat.st_size, stat.st_mtime_ns
            else:
                self.others.append(name)


def _identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def start_of(path: Path) -> bytes:
    """A file's first bytes; none where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(START)
    except OSError:
        return b""


def is_unfinished(path: Path) -> bool:
    """Whether a folder is a preparation that this program has begun."""
    return path.name.endswith(".part") and (path / "work" / "journal").is_file()


def open_folder(path: Path, options: SourceOptions, _work: Path) -> ImageFiles:
    """A folder of images; see `Files.tree`."""
    listing = Listing.of(path, options.links)
    found = Files(
        list(listing.images),
        listing.others,
        lambda name: label_bytes(path / name),
        str(path),
        listing.skipped,
    )
    tree = labelled_tree(found, options)
    tree.notes += passed_over(listing.passed)
    synsets = tree.labelled and all(
        n[:1] == "n" and n[1:].isdigit() and len(n) == 9 for n in tree.class_names
    )
    by_file = any(not name.startswith(tree.held_out_names or "\0") for name in tree.tables)
    return ImageFiles(
        kind="ImageNet's tree of synsets"
        if synsets
        else "a folder of images with a file of labels"
        if by_file
        else "a folder of class folders"
        if tree.labelled
        else "a folder of images",
        path=path,
        containers=[path / name if name != options.labels else Path(name) for name in tree.tables],
        names=tree.names,
        stats=[listing.images[name] for name in tree.names],
        links=options.links,
        **tree.attributes(),
    )
