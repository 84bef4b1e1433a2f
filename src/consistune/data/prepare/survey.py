"""How a source's images are converted: by what the user asks, and by a look at some of the images."""

import hashlib
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import numpy as np
from PIL import ImageColor

from consistune.data.prepare.transform import FILTERS, BadImage, Transform, is_grey, open_image, upright_size
from consistune.data.prepared import META, is_prepared
from consistune.data.sources.base import Source, SourceOptions, Unreadable
from consistune.data.sources.detect import open_source
from consistune.data.sources.files import Listing
from consistune.errors import UserError

LABEL_FILES = (".csv", ".json", ".jsonl", ".txt", ".tsv", ".mat", ".cls")
"""Endings of files from which labels are read."""
SAMPLE = 256
"""Images that are looked at."""
CROPS = ("center", "dhariwal", "pad", "none")
MODES = ("rgb", "grey", "auto")
MAX_SIZE = 4096


@dataclass(frozen=True)
class ImageOptions:
    """What the user asks of the images; None: no option was given.

    Attributes:
        size, crop, filter: see `Transform`. crop is "center" where only the size is given.
        background: a colour's name or #rrggbb.
        mode: "rgb", "grey" or "auto".
    """

    size: int | None = None
    crop: str | None = None
    filter: str | None = None
    background: str = "white"
    mode: str = "auto"

    def __post_init__(self) -> None:
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise UserError(f"{self.size} is not a size", "--size", f"1 to {MAX_SIZE}")
        choices: dict[str, Collection[str]] = {"crop": CROPS, "filter": FILTERS, "mode": MODES}
        for option, known in choices.items():
            value = getattr(self, option)
            if value is not None and value not in known:
                raise UserError(f"unknown {option} {value!r}", f"--{option}", ", ".join(known))
        if self.size is None and (self.crop or self.filter):
            raise UserError("crop and filter need a size", "--size")
        if self.crop == "dhariwal" and self.filter:
            raise UserError("has filters of its own", "--crop dhariwal", "leave out --filter")

    def transform(self, grey: bool) -> Transform:
        """The transform; `grey` says whether the source's images are grey, for the mode "auto"."""
        try:
            background = ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            raise UserError(
                f"{self.background!r} is not a colour", "--background", "white, #ff8000"
            ) from error
        grey = grey if self.mode == "auto" else self.mode == "grey"
        crop = self.crop or ("none" if self.size is None else "center")
        return Transform(
            mode="grey" if grey else "rgb",
            size=self.size,
            crop=crop,  # type: ignore[arg-type]  # checked above
            filter=self.filter or "lanczos",
            background=(background[0], background[1], background[2]),
            strict_grey=self.mode == "auto" and grey,
        )


def choose_transform(source: Source, options: ImageOptions) -> tuple[Transform, tuple[int, int, int]]:
    """The transform, and the shape (channels, height, width) that every image gets.

    The mode "auto" is grey where all of 256 evenly spread images are stored as grey, and RGB otherwise.
    Raises UserError for a source without images, where none of the sample can be read, and, unless a size is
    asked for, where the sample's images have different sizes.
    """
    if len(source) == 0:
        raise UserError("holds no images", str(source.path))
    if source.shape is not None:
        channels, height, width = source.shape
        transform = options.transform(grey=channels == 1)
        side = (height, width) if options.size is None else (options.size, options.size)
        return transform, (transform.channels, *side)
    looks = _looks(source)
    sizes = {size for _, size in looks}
    transform = options.transform(grey=all(grey for grey, _ in looks))
    if options.size is not None:
        return transform, (transform.channels, options.size, options.size)
    (a, b), (c, d) = min(sizes), max(sizes)
    if len(sizes) > 1:
        raise UserError(f"has images of different sizes, {a}×{b} to {c}×{d}", str(source.path), "say --size")
    return transform, (transform.channels, b, a)


def state_of(path: Path, links: bool = False) -> str:
    """A hash that changes with the names, sizes and times of a source's files; for a prepared set its meta's.

    Of a folder the images and the tables of labels count; what is passed over does not. "" where the source
    is not there or cannot be read: to open it then says why.
    """
    total = hashlib.sha256()
    try:
        if is_prepared(path):
            return hashlib.sha256((path / META).read_bytes()).hexdigest()
        for name, size, changed in _stats(path, links):
            total.update(f"{size} {changed} {name}\n".encode("utf-8", "surrogateescape"))
    except OSError:
        return ""
    return total.hexdigest()


def _stats(path: Path, links: bool) -> list[tuple[str, int, int]]:
    """(name, bytes, time of its last change) of a file, or of a folder's images and tables."""
    if not path.is_dir():
        known = path.stat()
        return [("", known.st_size, known.st_mtime_ns)]
    listing = Listing.of(path, links)
    tables = {
        name: (path / name).stat() for name in sorted(listing.others) if name.lower().endswith(LABEL_FILES)
    }
    images = [(name, *known) for name, known in listing.images.items()]
    return images + [(name, known.st_size, known.st_mtime_ns) for name, known in tables.items()]


@dataclass(frozen=True)
class Survey:
    """Images as they are.

    Attributes:
        channels: 1 where all that were looked at are grey, else 3.
        side: the shorter side, the median of those that were looked at.
        own_held_out: the source has a test set of its own.
        sizes: training images of each class, by its name.
        grouped: the source has groups, and each class two of them or more.
    """

    channels: int
    side: int
    own_held_out: bool
    sizes: dict[str, int]
    grouped: bool = False


def survey(path: Path) -> Survey:
    """A look at a source. Raises UserError where it cannot be read, or holds no readable image."""
    with tempfile.TemporaryDirectory() as work:
        source = open_source(path, SourceOptions(), Path(work))
        if len(source) == 0:
            raise UserError("holds no images", str(path))
        held_out = source.own_held_out
        labels = source.labels if held_out is None else source.labels[~held_out]
        names = source.class_names
        sizes = dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True))
        own = held_out is not None
        if source.shape is not None:
            channels = 1 if source.shape[0] == 1 else 3
            return Survey(channels, min(source.shape[1:]), own, sizes, _grouped(source))
        looks = _looks(source)
        channels = 1 if all(grey for grey, _ in looks) else 3
        return Survey(channels, median_low(min(size) for _, size in looks), own, sizes, _grouped(source))


def _grouped(source: Source) -> bool:
    """Whether no class is a single group, so that groups can be held out."""
    if source.groups is None:
        return False
    _, first = np.unique(np.array(source.groups), return_index=True)
    counts = np.bincount(source.labels[first], minlength=len(source.class_names))
    return bool((counts[np.unique(source.labels)] > 1).all())


def _looks(source: Source) -> list[tuple[bool, tuple[int, int]]]:
    """Whether an image is grey, and its size, of 256 evenly spread ones; one at a time is in memory.

    Raises UserError where none can be read.
    """
    count = min(SAMPLE, len(source))
    items = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    looks, why = [], ""
    for raw in source.sample(items):
        # An image that cannot be read is listed later, when the images are converted.
        try:
            if isinstance(raw, bytes):
                image = open_image(raw)
                looks.append((is_grey(image), upright_size(image)))
        except BadImage as error:
            why = why or str(error)
        if isinstance(raw, Unreadable):
            why = why or raw.reason
    if not looks:
        what = f"none of {count} images can be read: {source.name(items[0])} {why}"
        raise UserError(what, str(source.path))
    return looks
