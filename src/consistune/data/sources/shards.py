"""WebDataset: the members of a sample have one name up to the first dot; KEY.cls is its label."""

from dataclasses import dataclass, field

from consistune.data.sources.base import SourceOptions
from consistune.data.sources.beside import base, notes_on
from consistune.data.sources.labels import number_labels
from consistune.data.sources.splits import splits_among
from consistune.data.sources.tree import Files, Part, Tree, children
from consistune.errors import UserError, printable

CLASS = ".cls"
MAX_LABEL = 1000
"""Bytes."""


def labelled_tree(files: Files, options: SourceOptions, keyed: bool | None = None) -> Tree:
    """The tree of these files, with notes on what lies beside the images.

    Args:
        keyed: the labels are those of `keyed_tree`; None: they are where an image has one.
    """
    if keyed is None:
        keys = {_key(name) for name in files.others if is_label(name)} if options.labels is None else set()
        keyed = any(_key(name) in keys for name in files.images)
    tree = keyed_tree(files) if keyed else files.tree(options)
    tree.notes += notes_on(files.others, tree.tables, tree.labelled)
    return tree


def is_label(name: str) -> bool:
    """Whether a file's name is KEY.cls."""
    return base(name).partition(".")[2].lower() == CLASS[1:]


def keyed_tree(files: Files) -> Tree:
    """The images that have a label KEY.cls; the splits are in the shards' names.

    Raises UserError where no image has a label, and for an empty one.
    """
    first: dict[str, str] = {}
    for name in files.images:
        if first.setdefault(_key(name), name) != name:
            files.skipped.append((name, f"is a second image of its key, after {base(first[_key(name)])}"))
    images = list(first.values())
    keyed = _Keyed(images, files.others, files.read, files.where, files.skipped)
    folders, _ = children(images, "")
    splits = splits_among(folders)
    tree = keyed.by_split("", splits, folders, []) if splits else keyed.numbered(keyed.part("", {}, images))
    if not tree.labelled:
        raise UserError(f"no image in it has a label KEY{CLASS} beside it", files.where)
    words = [tree.class_names[label] for label in tree.labels]
    numbered = number_labels(words, None, f"{files.where}, {CLASS}")
    tree.labels, tree.class_names = numbered.values, numbered.class_names
    tree.notes += numbered.notes
    tree.tables = sorted(name for name in files.others if is_label(name) and _key(name) in first)
    tree.skipped += [(key + CLASS, "has no image") for key in keyed.labels if key not in first]
    return tree


def _key(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


@dataclass
class _Keyed(Files):
    """Files whose labels stand beside them."""

    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.others:
            if is_label(name):
                word = self.read(name)[:MAX_LABEL].decode("utf-8", "replace").strip()
                if not word:
                    raise UserError(f"{printable(name)} is empty", self.where)
                self.labels[_key(name)] = word

    def part(self, _prefix: str, folders: dict[str, list[str]], direct: list[str]) -> Part:
        names = [*direct, *(name for inside in folders.values() for name in inside)]
        return Part({name: self.labels.get(_key(name)) for name in names})

    def class_notes(self, _classes: list[str]) -> list[str]:
        return []
