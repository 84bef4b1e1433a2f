"""Which images are held out, and each image's row: pure functions of labels, groups and a seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consistune.errors import UserError


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


def held_out(labels: NDArray[np.int64], groups: list[str] | None, split: Split) -> NDArray[np.bool_]:
    """bool [n]: `fraction` of each class's images, drawn with a random stream for each class.

    By group: a group belongs to the class of its first image. Whole groups are drawn in random order, as long
    as they fit in the class's share. Raises UserError where there are no groups.
    """
    chosen = np.zeros(len(labels), bool)
    if split.by == "group" and groups is None:
        raise UserError("the source has no groups", "--split-by group", "dataset.json has no list 'group'")
    if split.fraction == 0:
        return chosen
    if split.by == "image":
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            order = np.random.default_rng([split.seed, int(label)]).permutation(len(rows))
            chosen[rows[order[: round(split.fraction * len(rows))]]] = True
        return chosen
    names, first, index, sizes = np.unique(
        np.array(groups), return_index=True, return_inverse=True, return_counts=True
    )
    taken = np.zeros(len(names), bool)
    group_labels = labels[first]
    for label in np.unique(group_labels):
        of_class = np.flatnonzero(group_labels == label)
        left = round(split.fraction * int(sizes[of_class].sum()))
        for group in np.random.default_rng([split.seed, int(label)]).permutation(of_class):
            if sizes[group] <= left:
                taken[group] = True
                left -= int(sizes[group])
    return taken[index]


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
