"""What the names of files say: splits, classes, and what is neither. Folders, ZIPs and tars share it."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from os.path import splitext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.sources.base import UNREAD_SUFFIXES, Passed, SourceOptions, is_image
from consistune.data.sources.beside import base, is_junk, passed_over, without_images
from consistune.data.sources.labels import (
    UNLABELLED,
    LabelTable,
    brief,
    edm_table,
    label_bytes,
    read_label_file,
)
from consistune.data.sources.official import is_kaggle, validation_labels
from consistune.data.sources.splits import is_split_name, split_of, splits_among
from consistune.errors import UserError, printable

IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages", "data"}
EDM_NAME = re.compile(r"[0-9]{5}/img[0-9]{8}\.[a-z]+")
INTEGER = re.compile(r"-?[0-9]+")
VEHICLE = "train"
"""The word for a split that may be a class: beside others, and without folders in it, it is one."""
UNCLASSED = {"unlabeled", "unlabelled", "extra", "query", "gallery"}
"""Folders beside a training one that are no classes: of STL-10, SVHN, and sets of persons."""
OUTSIDE = "lies outside the class folders"


def children(names: Iterable[str], prefix: str) -> tuple[dict[str, list[str]], list[str]]:
    """The names below each folder of `prefix`, and those that lie in it directly."""
    folders: dict[str, list[str]] = {}
    direct: list[str] = []
    for name in names:
        head, slash, _ = name[len(prefix) :].partition("/")
        if slash:
            folders.setdefault(head, []).append(name)
        else:
            direct.append(name)
    return folders, direct


def _entered(
    prefix: str, folders: dict[str, list[str]], direct: list[str]
) -> tuple[str, dict[str, list[str]], list[str]]:
    """Where the classes or splits begin: a folder that alone holds all others is entered."""
    while not direct and len(folders) == 1:
        ((folder, inside),) = folders.items()
        below, flat = children(inside, f"{prefix}{folder}/")
        alone = folder.casefold() in IMAGE_FOLDERS or is_split_name(folder)
        if flat and not alone:
            break  # a class
        prefix += f"{folder}/"
        folders, direct = below, flat
    return prefix, folders, direct


@dataclass
class Tree:
    """n images of a tree: names, labels, and the rest of `Source`'s attributes that names decide.

    Attributes:
        tables: the files that the labels are read from.
    """

    names: list[str]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] = UNLABELLED
    labelled: bool = False
    own_held_out: NDArray[np.bool_] | None = None
    groups: list[str] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    held_out_names: tuple[str, ...] = ()
    passed: list[Passed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def attributes(self) -> dict[str, Any]:
        """The arguments of `Source` that the tree decides."""
        keys = "labels class_names labelled own_held_out groups skipped held_out_names passed notes"
        return {key: getattr(self, key) for key in keys.split()}


@dataclass
class Part:
    """Images with their classes' names (None: not known), those beside class folders, and label files."""

    words: dict[str, str | None] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> set[str]:
        return {word for word in self.words.values() if word is not None}

    def add(self, other: "Part") -> None:
        self.words |= other.words
        self.outside += other.outside
        self.tables += other.tables
        self.notes += other.notes


@dataclass
class Files:
    """The files of a folder or an archive.

    Attributes:
        images: names, sorted.
        others: names of all other files.
        read: a file's content; raises UserError.
        where: the folder or archive, for messages.
        skipped: (name, reason) of entries that are left out.
    """

    images: list[str]
    others: list[str]
    read: Callable[[str], bytes]
    where: str
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def tree(self, options: SourceOptions) -> Tree:
        """Which images are taken, with which labels. Raises UserError where there is none.

        - with a file of labels (`options.labels`, or EDM's `dataset.json`, with the images beside or below
          it): labels by file name;
        - with folders named train and val or test (`splits_among`): training and held-out images, with
          classes below them, or without labels;
        - with folders: those are the classes, in sorted order of the names (of ImageNet: of the synsets);
        - flat: no labels.

        A folder that alone holds all others is entered.
        """
        if not self.images:
            reason = f": {printable(self.skipped[0][0])} {self.skipped[0][1]}" if self.skipped else ""
            raise UserError(f"holds no images{reason}", self.where, without_images(self.others))
        if options.labels is not None:
            if not is_kaggle(Path(options.labels)):
                return self._by_table(read_label_file(Path(options.labels)), "", options.labels)
            self._add(options.labels)
        depths = sorted((name.count("/"), name) for name in self.others if base(name) == "dataset.json")
        if len(depths) > 1 and depths[0][0] == depths[1][0]:
            what = f"holds {printable(depths[0][1])} and {printable(depths[1][1])}"
            raise UserError(what, self.where, "prepare one of their folders")
        if depths:
            name = depths[0][1]
            table, notes = edm_table(self.read(name), f"{self.where}, {printable(name)}")
            prefix = name.removesuffix("dataset.json")
            if table is not None:
                return self._by_table(table, prefix, name)
            below = [image for image in self.images if image.startswith(prefix)]
            return self.numbered(Part(dict.fromkeys(below), sorted(set(self.images) - set(below)), [], notes))
        if all(EDM_NAME.fullmatch(name) for name in self.images):
            return self.numbered(Part(dict.fromkeys(self.images)))
        return self._by_names()

    def _add(self, file: str) -> None:
        """Read a file that lies elsewhere as if it were among these."""
        inside = self.read
        self.read = lambda name: label_bytes(Path(file)) if name == file else inside(name)
        self.others.append(file)

    def _by_table(self, table: LabelTable, prefix: str, name: str) -> Tree:
        inside = [image.removeprefix(prefix) for image in self.images if image.startswith(prefix)]
        outside = [image for image in self.images if not image.startswith(prefix)]
        labels, skipped = table.match(inside, [(n.removeprefix(prefix), why) for n, why in self.skipped])
        if not labels.names:
            what = f"none of the labels in {printable(name)} is of one of its {len(inside):,} images"
            raise UserError(what, self.where, f"the first names {printable(table.names[0])}")
        reason = f"lies outside the folder of {base(name)}"
        return Tree(
            names=[prefix + image for image in labels.names],
            labels=labels.values,
            class_names=labels.class_names,
            labelled=True,
            groups=labels.groups,
            skipped=[*skipped, *((image, reason) for image in outside)],
            notes=list(labels.notes),
            tables=[name],
        )

    def _by_names(self) -> Tree:
        prefix, folders, direct = _entered("", *children(self.images, ""))
        splits = splits_among(folders) or self._only_training(prefix, folders)
        if splits:
            tree = self.by_split(prefix, splits, folders, direct)
        else:
            tree = self.numbered(self.part(prefix, folders, direct))
            vehicles = [word for word in tree.class_names if is_split_name(word)]
            tree.notes += [f"{word}/ is a class, because it holds images and no folders" for word in vehicles]
        if prefix:
            tree.notes.insert(0, f"all images lie in {printable(prefix)}")
        return tree

    def _only_training(self, prefix: str, folders: dict[str, list[str]]) -> dict[str, str]:
        """The folder `train` with class folders, where others are beside it; else nothing.

        Raises UserError for splits among classes, and for splits below the folders, not above them. A flat
        folder `train` is a class: a vehicle.
        """
        found = {folder: split_of(folder) or "" for folder in folders if is_split_name(folder)}
        for folder, split in found.items():
            if split == "train" and not children(folders[folder], f"{prefix}{folder}/")[1]:
                return {folder: split}
            is_class = folder.casefold() == VEHICLE and UNCLASSED.isdisjoint(map(str.casefold, folders))
            if not is_class and len(folders) > 1:
                others = brief(sorted(set(folders) - {folder}))
                what = f"holds {printable(folder)}/, which may be a split, beside {others}"
                remedy = "move it away, or put the others into a folder train/"
                if split == "train":
                    remedy = "move the others away, or into a folder test/"
                raise UserError(what, self.where, remedy)
        for folder, names in folders.items():
            inner = splits_among(children(names, f"{prefix}{folder}/")[0])
            if len(inner) > 1:
                what = f"holds splits ({brief(sorted(inner))}) inside the folder {printable(folder)}"
                raise UserError(what, self.where, "the splits must be above the class folders")
        return {}

    def by_split(
        self, prefix: str, splits: dict[str, str], folders: dict[str, list[str]], direct: list[str]
    ) -> Tree:
        parts: dict[str, Part] = {}
        named: dict[str, list[str]] = {}
        for folder, split in splits.items():
            below = f"{prefix}{folder}/"
            parts.setdefault(split, Part()).add(self.part(below, *children(folders[folder], below)))
            named.setdefault(split, []).append(folder)
        notes = [
            f"{brief(names)} together are the {s} images" for s, names in named.items() if len(names) > 1
        ]
        train = parts.pop("train")
        held, passed = "", []
        for split, part in sorted(parts.items(), key=lambda item: item[0] != "validation"):
            unlabelled = bool(train.classes) and not part.classes
            if held or unlabelled:
                reason = "has no labels" if unlabelled else f"{brief(named[held])} is the held-out set"
                passed.append(Passed(brief(named[split]), len(part.words) + len(part.outside), reason))
                continue
            if train.classes and not part.classes <= train.classes:
                unknown = printable(min(part.classes - train.classes))
                raise UserError(f"{brief(named[split])}/{unknown} is a class that train/ has not", self.where)
            if part.classes and not train.classes:
                ignored = f"the classes in {brief(named[split])} were not read: {brief(sorted(part.classes))}"
                notes.append(f"{ignored}; the training images have none")
            if not train.classes:
                part.words = dict.fromkeys([*part.words, *part.outside])
            held = split
        held_part = parts.get(held, Part())
        sums = train.tables + held_part.tables, train.notes + held_part.notes
        tree = self.numbered(Part(train.words | held_part.words, [], *sums))
        tree.skipped += [
            (n, OUTSIDE) for part in (train, held_part) for n in part.outside if n not in part.words
        ]
        stray = direct + [name for folder, names in folders.items() if folder not in splits for name in names]
        tree.skipped += [(name, "lies outside the folders of the splits") for name in stray]
        tree.held_out_names = tuple(f"{prefix}{folder}/" for folder in named.get(held, ()))
        tree.own_held_out = np.array([name in held_part.words for name in tree.names], bool) if held else None
        tree.passed, tree.notes = passed, [*tree.notes, *notes]
        return tree

    def part(self, prefix: str, folders: dict[str, list[str]], direct: list[str]) -> Part:
        """The images below `prefix`: their classes are the folders, or stand in a known file of labels."""
        inner, folders, direct = _entered(prefix, folders, direct)
        notes = [f"all images of {printable(prefix)} lie in {printable(inner)}"] if inner != prefix else []
        if folders:
            words: dict[str, str | None] = {n: folder for folder, names in folders.items() for n in names}
            return Part(words, direct, [], notes + _deeper(inner, folders))
        known, tables = validation_labels(inner, direct, self.others, self.read)
        return Part({name: known.get(base(name).rpartition(".")[0]) for name in direct}, [], tables, notes)

    def numbered(self, part: Part) -> Tree:
        """The tree of these images; those without a class are left out where others have one."""
        classes = sorted(part.classes)
        names = sorted(name for name, word in part.words.items() if word is not None or not classes)
        skipped = [*self.skipped, *((name, OUTSIDE) for name in part.outside)]
        skipped += [(name, "has no label") for name, word in part.words.items() if classes and word is None]
        index = {word: k for k, word in enumerate(classes)}
        labels = np.array([index.get(part.words[name] or "", 0) for name in names], np.int64)
        tree = Tree(names, labels, tuple(classes) or UNLABELLED, bool(classes))
        tree.skipped, tree.tables = skipped, part.tables
        tree.notes = self.class_notes(classes) + part.notes
        return tree

    def class_notes(self, classes: list[str]) -> list[str]:
        """A note where the classes' numbers are not the numbers that are, or stand in, their names."""
        numbers = [word for word in classes if INTEGER.fullmatch(word)]
        if classes == [str(k) for k in range(len(classes))]:
            return []
        if not numbers and classes == sorted(classes, key=_with_numbers):
            return []
        return [f"classes 0 … {len(classes) - 1} are the folders {brief(classes)}, in this order"]


def _with_numbers(name: str) -> list[str | int]:
    """The pieces of a name, by which class2 comes before class10."""
    return [int(piece) if k % 2 else piece for k, piece in enumerate(re.split("([0-9]+)", name))]


def clean_name(name: str) -> str:
    """A member's name as one below the archive: "/a", "./a" and "../a" are "a". Backslashes are slashes."""
    if "/" not in name:
        name = name.replace("\\", "/")
    if not (name.startswith(("/", ".")) or "/." in name or "//" in name):
        return name
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def archive_files(
    names: Iterable[str], start: Callable[[str], bytes], read: Callable[[str], bytes], where: str
) -> tuple[Files, list[str]]:
    """The files of an archive, by their names and first bytes, and a note on what is passed over."""
    files, passed = Files([], [], read, where), []
    for name in names:
        suffix = splitext(name)[1].lower()
        if any(is_junk(part) for part in name.split("/")):
            passed.append(name)
        elif suffix in UNREAD_SUFFIXES:
            files.skipped.append((name, f"is an image of a kind that is not read ({suffix})"))
        elif is_image(suffix, partial(start, name)):
            files.images.append(name)
        else:
            files.others.append(name)
    files.images.sort()
    return files, passed_over(passed)


def _deeper(prefix: str, folders: dict[str, list[str]]) -> list[str]:
    """A note on folders below the class folders, if there are any; one for images is none of them."""
    found = [
        f"{folder}/{inner}"
        for folder, names in folders.items()
        for inner in children(names, f"{prefix}{folder}/")[0]
        if inner.casefold() not in IMAGE_FOLDERS
    ]
    return [f"the names of folders below the classes are not read: {brief(sorted(found))}"] if found else []
