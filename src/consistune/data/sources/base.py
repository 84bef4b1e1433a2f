"""A source: n images with labels, and how to read them. No torch here: worker processes import it.

A new source is one file with a `Source` and a function that opens it, and one row in `detect.FORMATS`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

# fmt: off
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".apng", ".avif",
)
UNREAD_SUFFIXES = (
    ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".psd", ".svg", ".exr", ".hdr", ".tga", ".dds", ".ico", ".eps",
    ".dng", ".nef", ".pcx", ".sgi",
)
"""Images that are not read."""
TEXTS = (
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".md", ".html", ".py", ".yaml", ".yml", ".log", ".mat",
    ".npy", ".npz", ".pkl",
)
"""Endings of texts and arrays: what in another file may be an image of text (PNM) is none in these."""
# fmt: on
START = 16
"""Bytes from which the kind of a file is seen."""
MAGIC = (
    *(b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"8BPS", b"DDS "),
)
"""PNG, JPEG, GIF, TIFF; of those that are not read: JPEG 2000, JPEG XL, PSD and DDS."""
PNM = re.compile(rb"P[1-6]\s+[0-9#]")
MAX_IMAGE_BYTES = 1 << 28


def starts_like_image(start: bytes) -> bool:
    """Whether a file's first `START` bytes are those of an image, also of a kind that is not read."""
    return (
        start.startswith(MAGIC)
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1"))
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
        or (start[:4] == b"\0\0\1\0" and start[4:5] > b"\0" and start[5:6] == b"\0")  # an icon
        or PNM.match(start) is not None
    )


def is_image(suffix: str, start: Callable[[], bytes]) -> bool:
    """Whether a file is an image: by its ending, in small letters, or by its first bytes."""
    if suffix in SUFFIXES:
        return True
    first = start()
    return starts_like_image(first) and not (suffix in TEXTS and PNM.match(first))


@dataclass(frozen=True)
class Unreadable:
    """Stands for an image that could not be read, with the reason."""

    reason: str


TOO_LARGE = Unreadable(f"has more than {MAX_IMAGE_BYTES} bytes")

Raw: TypeAlias = bytes | NDArray[np.uint8] | Unreadable
"""An encoded image file, or pixels uint8 [H, W, C]."""
Reader: TypeAlias = Callable[[Any], Iterator[Raw]]
"""From a task (small and picklable) to its images, in order. It opens the files that it needs."""


@dataclass(frozen=True)
class SourceOptions:
    """What the user says about a source.

    Attributes:
        format: a name in `detect.FORMATS`; None: it is detected.
        labels: a CSV or JSON file of labels (folder, zip), "fine" or "coarse" (CIFAR-100), a column's name
            (parquet).
        layout: "nhwc" or "nchw" (npz), where the shape does not show it.
        links: symbolic links of a folder are followed.
    """

    format: str | None = None
    labels: str | None = None
    layout: str | None = None
    links: bool = False


@dataclass(frozen=True)
class Passed:
    """A split of the source that is no part of the prepared set: its images, and why."""

    split: str
    images: int
    reason: str


@dataclass(kw_only=True)
class Source(ABC):
    """n images with labels, in a fixed order, read in pieces of consecutive images.

    Attributes:
        kind: the format, in words.
        path: what the user named.
        labels: int64 [n], from 0.
        class_names: one for each label.
        labelled: False where the source has no labels; they are all 0 then.
        own_held_out: bool [n], the images of the source's own test set; None where it has none.
        groups: [n], images that a split must keep together, from `dataset.json`; None where it has none.
        containers: the files that hold the images, for the source's hash; empty where each image is a file.
        skipped: (name, reason) of each entry of the source that is not one of the n images.
        held_out_names: what the names of held-out images, and no others, begin with.
        passed: whole splits that are left out.
        notes: what the user should know about how the source was read.
        shape: (channels, height, width), where the format fixes it.
        piece: images in a piece.
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
    held_out_names: tuple[str, ...] = ()
    passed: list[Passed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shape: tuple[int, int, int] | None = None
    piece: int = 256

    def __len__(self) -> int:
        return len(self.labels)

    def pieces(self) -> list[tuple[int, int]]:
        """The ranges (first, last + 1) of images that are read together."""
        n = len(self)
        return [(first, min(first + self.piece, n)) for first in range(0, n, self.piece)]

    @abstractmethod
    def name(self, item: int) -> str:
        """An image's name in messages."""

    @abstractmethod
    def task(self, first: int, last: int) -> Any:
        """What `read` needs for images first … last − 1, which lie in one piece."""

    @staticmethod
    @abstractmethod
    def read(task: Any) -> Iterator[Raw]:
        """The task's images, in order. It is a `Reader`: a function of a module, which can be pickled."""

    def sample(self, items: list[int]) -> Iterator[Raw]:
        """These images, for a look at them."""
        return (raw for item in items for raw in self.read(self.task(item, item + 1)))

    def item_files(self) -> Iterator[tuple[str, int]]:
        """(relative name, bytes) of each image, where `items_are_files`."""
        return iter(())

    def item_times(self) -> Iterator[int]:
        """When each image was changed last, in nanoseconds, where `items_are_files`."""
        return iter(())


@dataclass(kw_only=True)
class BlockSource(Source):
    """Images in blocks, such as arrays or row groups. No piece extends over two blocks.

    Attributes:
        sizes: images in each block.
    """

    sizes: list[int]

    def __post_init__(self) -> None:
        self._edges = [0, *np.cumsum(self.sizes).tolist()]

    def pieces(self) -> list[tuple[int, int]]:
        return [
            (first, min(first + self.piece, stop))
            for start, stop in pairwise(self._edges)
            for first in range(start, stop, self.piece)
        ]

    def locate(self, item: int) -> tuple[int, int]:
        """An image's block, and its row in that block."""
        block = int(np.searchsorted(self._edges, item, side="right")) - 1
        return block, item - self._edges[block]
