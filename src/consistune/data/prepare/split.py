"""Which images are held out, and each image's row: pure functions of labels, groups and a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.errors import UserError, printable


@dataclass(frozen=True)
class Split:
    """How a source without a test set of its own is divided.

    Attributes:
        fraction: the share of each class that is held out.
        by: "image"; or "group": no group is on both sides.
        seed: chooses the images or groups.
    """

    fraction: float = 0.0
    by: str = "image"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise UserError(f"{self.fraction} is not a share", "--held-out", "from 0 to below 1")
        if self.by not in ("image", "group"):
            raise UserError(f"cannot split by {self.by!r}", "--split-by", "image or group")


def held_out(
    labels: NDArray[np.int64], groups: list[str] | None, split: Split, class_names: Sequence[str] = ()
) -> NDArray[np.bool_]:
    """bool [n]: `fraction` of each class's images, drawn with a random stream for each class.

    By group, whole groups are drawn in random order, as long as they fit in the share of the class of their
    first image; by image, each image is a group. Each class that is the first image's of some group has at
    least one such group on either side: where none fits, its smallest is held out.
    Raises UserError where there are no groups, and for a class (named from `class_names`) of one group.
    """
    if split.by == "group" and groups is None:
        raise UserError("the source has no groups", "--split-by group", "dataset.json has no list 'group'")
    if split.fraction == 0:
        return np.zeros(len(labels), bool)
    names: NDArray[Any] = np.arange(len(labels)) if split.by == "image" else np.array(groups)
    _, first, index, sizes = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(sizes), bool)
    group_labels = labels[first]
    for label in np.unique(group_labels):
        of_class = np.flatnonzero(group_labels == label)
        if len(of_class) < 2:
            name = class_names[label] if label < len(class_names) else str(label)
            what = f"class {printable(name)} has one {split.by}, which cannot be on both sides"
            raise UserError(what, "--held-out", "add to the class, remove it, or leave the option out")
        left = round(split.fraction * int(sizes[of_class].sum()))
        order = np.random.default_rng([split.seed, int(label)]).permutation(of_class)
        for group in order:
            if left == 0:
                break
            if sizes[group] <= left:
                chosen[group] = True
                left -= int(sizes[group])
        if not chosen[of_class].any():
            chosen[order[np.argmin(sizes[order])]] = True
        if chosen[of_class].all():
            chosen[order[np.argmin(sizes[order])]] = False
    return chosen[index]


@dataclass(frozen=True)
class Rows:
    """Each image's place in the result: side[i] is 0 (training) or 1 (held-out), row[i] its row there.

    Rows are sorted by class; within a class they are in the source's order.
    """

    side: NDArray[np.int8]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.int64], held: NDArray[np.bool_]) -> "Rows":
        side = held.astype(np.int8)
        row = np.empty(len(labels), np.int64)
        for k in (0, 1):
            items = np.flatnonzero(side == k)
            row[items[np.argsort(labels[items], kind="stable")]] = np.arange(len(items))
        return cls(side, row)

    def count(self, side: int) -> int:
        return int((self.side == side).sum())
