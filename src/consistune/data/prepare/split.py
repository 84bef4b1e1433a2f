"""Which images are held out, and where every image goes: pure functions of labels, groups and a seed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consistune.errors import UserError


@dataclass(frozen=True)
class Split:
    """How a source without a test set of its own is divided.

    Attributes:
        fraction: the share of each class that is held out.
        by: "image"; or "group", where no group is on both sides.
        seed: which images, or groups, they are.
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
    """bool [n]: of each class, `fraction` of its images, drawn with the seed (the class's own stream).

    By group: whole groups, in random order, as long as they fit in the share of the class of their first
    image. Raises UserError where there are no groups.
    """
    chosen = np.zeros(len(labels), bool)
    if split.by == "group" and groups is None:
        raise UserError(
            "the source names no groups", "--split-by group", "dataset.json has none under 'group'"
        )
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
    homes = labels[first]
    for label in np.unique(homes):
        of_class = np.flatnonzero(homes == label)
        left = round(split.fraction * int(sizes[of_class].sum()))
        for group in np.random.default_rng([split.seed, int(label)]).permutation(of_class):
            if sizes[group] <= left:
                taken[group] = True
                left -= int(sizes[group])
    return taken[index]


@dataclass(frozen=True)
class Rows:
    """Where every image goes: side[i] is 0 (training) or 1 (held-out), row[i] its row there.

    Classes stand one after another, images of a class in the source's order.
    """

    side: NDArray[np.int8]
    row: NDArray[np.int64]

    @classmethod
    def of(cls, labels: NDArray[np.int64], held: NDArray[np.bool_]) -> "Rows":
        side = held.astype(np.int8)
        row = np.empty(len(labels), np.int64)
        for part in (0, 1):
            items = np.flatnonzero(side == part)
            row[items[np.argsort(labels[items], kind="stable")]] = np.arange(len(items))
        return cls(side, row)

    def count(self, part: int) -> int:
        return int((self.side == part).sum())
