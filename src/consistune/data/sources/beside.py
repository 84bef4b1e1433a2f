"""What lies beside the images: hidden entries, labels that were not read, archives; each gets a note."""

import re
from collections.abc import Collection
from os.path import splitext

from consistune.data.sources.labels import brief

JUNK = {"__macosx", "@eadir", "__pycache__", "lost+found", "$recycle.bin", "system volume information"}
"""Folders that a system made."""
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".txt", ".xml", ".npy", ".cls", ".label"}
"""Endings of files that may hold labels."""
CONTAINERS = {
    *(".zip", ".tar", ".tgz", ".txz", ".gz", ".xz", ".bz2", ".zst", ".7z", ".rar"),
    *(".npy", ".npz", ".parquet", ".h5", ".hdf5", ".tfrecord", ".mp4", ".avi", ".mov", ".mkv", ".webm"),
}
"""Endings of files that may hold images."""
ABOUT = re.compile(r"(readme|licen[cs]e|copying|notice|change|about|citation|requirements)", re.IGNORECASE)
"""How the names of texts begin that hold no labels."""
BATCH = re.compile(r"(data_batch_|test_batch|batches\.meta|train_data|val_data)", re.IGNORECASE)
"""How the names of CIFAR's and ImageNet's batches begin."""
MOST = 4
"""At most so many names are shown."""


def is_junk(part: str) -> bool:
    """Whether a folder's or file's name is hidden, or one that a system gives."""
    return part.startswith(".") or part.casefold() in JUNK


def base(name: str) -> str:
    return name.rpartition("/")[2]


def passed_over(names: list[str]) -> list[str]:
    """A note on hidden and system entries, if there are any."""
    return _note("hidden and system entries were passed over", names)


def notes_on(others: Collection[str], read: Collection[str], labelled: bool) -> list[str]:
    """Notes on the files that may hold labels, where there are none else, and on those that may hold images.

    Args:
        others: the names of all files that are no images.
        read: those from which labels were read.
    """
    unread = [(name, splitext(name)[1].lower()) for name in set(others) - set(read)]
    tables = {
        name
        for name, ending in unread
        if not labelled and ending in TABLES and base(name) != "dataset.json" and not ABOUT.match(base(name))
    }
    holders = {name for name, ending in unread if ending in CONTAINERS} - tables
    notes = _note("these may hold labels and were not read", tables, "; --labels FILE takes a CSV or JSON")
    return notes + _note("archives, arrays and films beside the images were not read", holders)


def _note(what: str, names: Collection[str], remedy: str = "") -> list[str]:
    return [f"{what}: {brief(sorted(names), MOST)}{remedy}"] if names else []


def without_images(others: Collection[str]) -> str:
    """The remedy for files without images: how images are named, and which files are there instead."""
    remedy = "their names end in .png, .jpg, .webp, …"
    names = sorted({base(name) for name in others})
    batches = [name for name in names if BATCH.match(name)]
    if batches:
        known = brief(batches, MOST)
        return f"{remedy}; for the batches {known}, give their own folder, with all of them, or the archive"
    return f"{remedy}; it holds {brief(names, MOST)}" if names else remedy
