"""Which names are the words of a split: train, validation, test, and how they are written."""

import re
from collections.abc import Collection

SPLITS = {
    "train": ("train", "training", "trn"),
    "validation": ("val", "validation", "valid", "validate", "dev"),
    "test": (
        *("test", "testing", "tst", "t10k", "eval", "evaluation"),
        *("holdout", "hold-out", "hold_out", "heldout", "held-out", "held_out"),
    ),
}
"""A split and the words for it: the Hugging Face hub's, and more. The first held-out one is taken."""
WORDS = {word: split for split, words in SPLITS.items() for word in words}
IMAGES = "(?:set|images?|imgs?|data)"
SPLIT = re.compile(rf"(?<![a-z]){IMAGES}?({'|'.join(WORDS)}){IMAGES}?(?![a-z])")
ALONE = re.compile(rf"[^a-z]*\*[^a-z]*({IMAGES}[^a-z]*)?")
HUMP = re.compile("(?<=[a-z])(?=[A-Z])")
DOMAIN = re.compile("(?<=[a-z])[A-Z](?![A-Za-z])")
"""The A of CycleGAN's trainA: it counts as a number."""


def _plain(name: str) -> str:
    """A name in small letters, with "_" before each hump of trainImages."""
    return HUMP.sub("_", DOMAIN.sub("1", name)).casefold()


def split_of(name: str) -> str | None:
    """The one split whose word a name has; else None.

    The word stands between other signs than letters (the hub's rule), before a capital, or beside "set",
    "images" or "data": train-1, trainA, TestImages, trainset.
    """
    found = {WORDS[word] for word in SPLIT.findall(_plain(name))}
    return found.pop() if len(found) == 1 else None


def is_split_name(folder: str) -> bool:
    """Whether a folder's name is a split's word and nothing else but numbers, "set", "images" or "data"."""
    return ALONE.fullmatch(SPLIT.sub("*", _plain(folder))) is not None


def splits_among(folders: Collection[str]) -> dict[str, str]:
    """folder → split, for the folders that are splits; empty where they are classes.

    A folder is a split if its name is a split's word, alone or with numbers, or with "set" or "images"; or if
    it has that word where another folder has another one (seg_train, seg_test). There must be a training one.
    """
    found: dict[str, str] = {}
    frames: dict[str, list[str]] = {}
    for folder in folders:
        split = split_of(folder)
        if split is None:
            continue
        frame = re.sub("[0-9]+", "0", SPLIT.sub("*", _plain(folder)))
        frames.setdefault(frame, []).append(folder)
        if is_split_name(folder):
            found[folder] = split
    for same in frames.values():
        if len({split_of(folder) for folder in same}) > 1:
            found |= {folder: split_of(folder) or "" for folder in same}
    splits = set(found.values())
    return found if "train" in splits and (len(splits) > 1 or len(found) == len(folders)) else {}
