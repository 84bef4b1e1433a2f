"""Sets of images, grouped by class: prepared folders, memory-mapped, and scikit-learn's digits."""

import hashlib
import shlex
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consistune.core.posterior.bank import free_memory
from consistune.core.posterior.mean import Reference, restored
from consistune.core.types import Batch, moved
from consistune.data.prepare.survey import ImageOptions, choose_transform
from consistune.data.prepare.transform import BadImage
from consistune.data.prepared import PICTURES, is_prepared, open_part, read_meta
from consistune.data.sources.base import SourceOptions
from consistune.data.sources.detect import open_source
from consistune.errors import UserError, printable
from consistune.nn.autoencoder.record import Latents

RESIDENT_SHARE = 0.1
"""Of a card's free memory; a larger set is copied batch by batch."""


@dataclass(frozen=True)
class ImageSet:
    """uint8 images [n, C, H, W] with int64 labels [n]; the images of a class are consecutive rows.

    Attributes:
        class_names: one for each label.
        files: name → SHA-256 of the set's files, where they are recorded; else None.
        latents: of a set of latents, their autoencoder and normalisation; its `images` are uint8 or float16.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    files: Mapping[str, str] | None = None
    latents: Latents | None = None

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> "ImageSet":
        """Group the rows by label (stable)."""
        order = torch.argsort(labels, stable=True)
        return cls(name, images[order].contiguous(), labels[order].contiguous(), class_names)

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of images and labels; where the files' own are recorded, of those."""
        total = hashlib.sha256()
        if self.files is None:
            for values in (self.images, self.labels):
                total.update(repr(tuple(values.shape)).encode() + values.contiguous().numpy().tobytes())
        else:
            total.update("".join(f"{self.files[name]} {name}\n" for name in sorted(self.files)).encode())
        return total.hexdigest()

    @property
    def scale(self) -> float:
        """A stored value v in [−1, 1] stands for scale·v."""
        return 1.0 if self.latents is None else self.latents.scale

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def batch(self, rows: Tensor, conditional: bool, device: torch.device | str = "cpu") -> Batch:
        """The training batch of these rows [B]: images in [−1, 1], labels (if `conditional`), the rows."""
        device = torch.device(device)

        def chosen(values: Tensor) -> Tensor:
            taken = values[moved(rows, values.device)]
            return (
                moved(taken.pin_memory(), device)
                if device.type == "cuda" and not taken.is_cuda
                else taken.to(device)
            )

        labels = chosen(self.labels) if conditional else None
        return Batch(restored(chosen(self.images), self.scale), labels, moved(rows, device))

    def resident(self, device: torch.device) -> "ImageSet":
        """The set in a card's memory where it takes at most RESIDENT_SHARE of what is free; else as it is."""
        if device.type != "cuda" or self.images.nbytes > RESIDENT_SHARE * free_memory(device):
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def values(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Images or latents of these rows in memory as fp32 [n, C, H, W], as training sees them."""
        return restored(self.images[rows], self.scale)

    @property
    def exact(self) -> Tensor:
        """What `Empirical` takes: uint8 pictures as they are, latents as their values."""
        return self.images if self.latents is None else self.values()

    def reference(self, by_class: bool, device: torch.device | str = "cpu") -> Reference:
        """The set as references for the score identity: one group for each class, or one group."""
        images = self.images.to(device)
        if not by_class:
            return Reference(images, (0, len(images)), scale=self.scale)
        sizes = torch.bincount(self.labels, minlength=len(self.class_names))
        return Reference(images, (0, *torch.cumsum(sizes, 0).tolist()), scale=self.scale)


@dataclass(frozen=True)
class DataSplit:
    """Images to train on, and images of the same kind for evaluation only (None where there are none).

    Attributes:
        pictures: of a set of latents, the pictures that were encoded.
    """

    train: ImageSet
    held_out: ImageSet | None
    pictures: "DataSplit | None" = None

    @property
    def to_look_at(self) -> "DataSplit":
        """The pictures with which samples are compared."""
        return self.pictures or self

    def need_held_out(self, what: str) -> ImageSet:
        """The held-out images. Raises UserError where there are none; `what` says what needs them."""
        if self.held_out is None:
            raise UserError(
                f"has no held-out images, which {what} needs",
                self.train.name,
                "prepare the set with --held-out 0.1",
            )
        return self.held_out


HELD_OUT_DIGITS = 297


@lru_cache(maxsize=1)
def digits() -> DataSplit:
    """scikit-learn's handwritten digits: 1500 training and 297 held-out images, 1×8×8, ten classes.

    The grey levels 0 … 16 become 0 … 255. The split is random but fixed, and stratified by class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=HELD_OUT_DIGITS, random_state=0, stratify=bunch.target
    )
    names = tuple(str(name) for name in bunch.target_names)
    return DataSplit(
        ImageSet.of("digits", pixels[train], labels[train], names),
        ImageSet.of("digits held-out", pixels[test], labels[test], names),
    )


SETS = {"digits": digits}


def load_data(name: str) -> DataSplit:
    """The built-in set of that name, or a prepared folder, whose images stay on the disk, mapped.

    Raises UserError for an unknown name, for data that are not prepared, and for a damaged folder.
    """
    path = Path(name)
    if name in SETS:
        if is_prepared(path):
            what = f"{name!r} is both the built-in set and a prepared folder here"
            raise UserError(what, "data", f"give ./{name} for the folder, or rename it")
        return SETS[name]()
    if is_prepared(path):
        return open_prepared(path)
    if path.exists():
        remedy = f"consistune data prepare {shlex.quote(name)} DEST makes one"
        raise UserError("is not a prepared set", name, remedy)
    known = ", ".join(sorted(SETS))
    raise UserError(
        f"unknown data set {name!r}",
        "data",
        f"give a folder made by consistune data prepare; built in: {known}",
    )


def open_prepared(path: Path) -> DataSplit:
    """The training and held-out images of a prepared folder. Raises UserError as `prepared` does."""
    meta = read_meta(path)
    sides: dict[str, ImageSet] = {}
    for side in meta.parts:
        images, labels = open_part(path, meta, side)
        name = path.name if side == "train" else f"{path.name} {side}"
        sides[side] = ImageSet(
            name,
            torch.from_numpy(images),
            torch.from_numpy(labels),
            meta.class_names,
            meta.parts[side].sha256,
            meta.latents,
        )
    split = DataSplit(sides["train"], sides.get("held-out"))
    if meta.latents is None:
        return split
    pictures = open_prepared(path / PICTURES)
    _check_pictures(split, pictures, meta.latents, str(path / PICTURES))
    return DataSplit(split.train, split.held_out, pictures)


def _check_pictures(latents: DataSplit, pictures: DataSplit, record: Latents, where: str) -> None:
    """Raises UserError unless the pictures are those that the latents can be of: shape, number, labels."""
    copies = 2 if record.mirrored else 1
    sides = ((latents.train, pictures.train, copies), (latents.held_out, pictures.held_out, 1))
    fit = all(
        mine is theirs is None
        or (
            mine is not None
            and theirs is not None
            and theirs.image_shape == record.picture_shape
            and torch.equal(theirs.labels.repeat_interleave(times), mine.labels)
        )
        for mine, theirs, times in sides
    )
    if not fit:
        raise UserError("are not the pictures of the latents beside them", where, "prepare the set again")


def read_unprepared(path: Path, say: Callable[[str], object] = lambda _line: None) -> ImageSet:
    """The training images of a small source, read into memory without preparing it.

    say: is called with a line for each note, and for each split that is not read.
    Raises UserError for a bad image, and for one whose size differs from the others'.
    """
    with tempfile.TemporaryDirectory() as work:
        source = open_source(path, SourceOptions(), Path(work))
        transform, shape = choose_transform(source, ImageOptions())
        own = source.own_held_out
        training = np.ones(len(source), bool) if own is None else ~own
        rows = np.cumsum(training) - 1
        pixels = np.empty((int(training.sum()), *shape), np.uint8)
        for first, last in source.pieces():
            for item, raw in enumerate(source.read(source.task(first, last)), first):
                if training[item]:
                    try:
                        pixels[rows[item]] = transform.to_shape(raw, shape)
                    except BadImage as error:
                        raise UserError(f"{source.name(item)} {error}", str(path)) from error
    if source.skipped:
        name, reason = source.skipped[0]
        raise UserError(f"{printable(name)} {reason}", str(path))
    for note in source.notes:
        say(f"note: {note}")
    if not training.all():
        say(f"note: {len(training) - len(pixels):,} held-out images are left out")
    for split in source.passed:
        say(f"note: {printable(split.split)}: {split.images:,} images are left out, {split.reason}")
    labels = torch.from_numpy(source.labels[training])
    return ImageSet.of(path.stem, torch.from_numpy(pixels), labels, source.class_names)
