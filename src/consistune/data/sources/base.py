"""What every source says of itself before a pixel is decoded. No torch here: worker processes import it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MAX_IMAGE_BYTES = 1 << 28


def shown(name: str) -> str:
    """A name from a source as it may be printed: without what a terminal would act on."""
    return name if name.isprintable() else ascii(name)[1:-1]


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that could not be read, with the reason."""

    reason: str


Raw: TypeAlias = bytes | NDArray[np.uint8] | Unreadable
"""An encoded image file, or pixels uint8 [H, W, C]."""
Reader: TypeAlias = Callable[[Any], Iterator[Raw]]
"""From a task (small and picklable) to its images, in order; opens what it needs itself."""


@dataclass(kw_only=True)
class Source(ABC):
    """n images with labels, in a fixed order, readable by pieces.

    Attributes:
        kind: the format, in words.
        path: what the user named.
        labels: int64 [n], from 0.
        class_names: one a label.
        labelled: False where the source has no labels (they are all 0 then).
        own_held_out: bool [n], the images of the source's own test set; None where it has none.
        groups: by `dataset.json`, what must not be divided between training and held-out; else None.
        containers: files that hold the images, for the source's hash; empty where the images are files.
        skipped: (name, reason) of what stands in the source and cannot be one of the n.
        notes: what the user should know of how the source was understood.
        shape: (channels, height, width) where the format fixes it.
        piece: images a task.
        items_are_files: whether each image is a file of its own.
    """

    items_are_files: ClassVar[bool] = False

    kind: str
    path: Path
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    labelled: bool = True
    own_held_out: NDArray[np.bool_] | None = None
    groups: list[str] | None = None
    containers: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shape: tuple[int, int, int] | None = None
    piece: int = 256

    def __len__(self) -> int:
        return len(self.labels)

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of images that are read together."""
        n = len(self)
        return [(first, min(first + self.piece, n)) for first in range(0, n, self.piece)]

    @abstractmethod
    def name(self, item: int) -> str:
        """How to call an image in a message."""

    @abstractmethod
    def task(self, first: int, last: int) -> Any:
        """What the reader needs for images first … last − 1; they lie within one piece."""

    @abstractmethod
    def reader(self) -> Reader:
        """A picklable function."""

    def item_files(self) -> Iterator[tuple[str, int]]:
        """(relative name, bytes) of each image, where the images are files (`items_are_files`)."""
        return iter(())
