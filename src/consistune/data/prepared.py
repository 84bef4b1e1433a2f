"""The prepared format: a folder with meta.json, and two npy files each for training and held-out images.

    DEST/meta.json
    DEST/train/images.npy      uint8 [n, C, H, W]; the images of a class are consecutive rows
    DEST/train/labels.npy      int64 [n], ascending
    DEST/held-out/…            the same, where images are held out
    DEST/pictures/             of a set of latents: the pictures, a prepared set themselves

In a set of latents images.npy holds latents [n, c, h, w], uint8 or float16 (`nn.autoencoder.record`), and the
training set each picture's mirror image after it where `mirrored` says so.

No torch here: numpy is enough to read it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from consistune.data.prepare import npy
from consistune.errors import UserError
from consistune.nn.autoencoder.record import Latents
from consistune.system.files import file_digest, write_atomically

FORMAT = 1
META, IMAGES, LABELS = "meta.json", "images.npy", "labels.npy"
PICTURES = "pictures"
SIDES = ("train", "held-out")
MAX_META = 1 << 28
MAX_SIDE, MAX_IMAGES = 1 << 16, 1 << 40


@dataclass(frozen=True)
class Part:
    """One side: its number of images; class k is rows offsets[k] … offsets[k + 1] − 1; its files' SHA-256."""

    images: int
    offsets: tuple[int, ...]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Account:
    """The images of a split: found = taken + all that are left out, counted by reason."""

    split: str
    found: int
    taken: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Meta:
    """The content of a prepared folder's meta.json.

    Attributes:
        source: path, kind, sha256 (of several files: of the sorted lines `sha256  bytes  name`).
        shape: (channels, height, width).
        transform: what was done to every image.
        class_names: one for each label.
        labelled: False where the source had no labels; all are 0 then.
        held_out: the rule by which images were held out; None where none were.
        parts: "train", and "held-out" where there is one.
        bad: {image, reason} of the images that were left out.
        notes: what the user should know about how the source was read.
        accounts: what was found and taken of each split of the source.
        latents: of a set of latents, the autoencoder and the normalisation; `shape` is then the latents'.
    """

    source: dict[str, Any]
    shape: tuple[int, int, int]
    transform: dict[str, Any]
    class_names: tuple[str, ...]
    labelled: bool
    held_out: Any
    parts: dict[str, Part]
    bad: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accounts: list[Account] = field(default_factory=list)
    latents: Latents | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("uint8" if self.latents is None else self.latents.stored)

    @property
    def bytes(self) -> int:
        values = sum(part.images for part in self.parts.values()) * int(np.prod(self.shape))
        return values * self.dtype.itemsize


_Checked = TypeAdapter(checked(Meta, config=ConfigDict(extra="forbid"), frozen=True))


def write_meta(path: Path, meta: Meta) -> None:
    """Write meta.json, one key on a line."""
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in {"format": FORMAT, **asdict(meta)}.items()
        if key != "latents" or value is not None
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # A file's name may have bytes that are not UTF-8. They become JSON escapes, which read back unchanged.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def is_prepared(path: Path) -> bool:
    return (path / META).is_file()


def read_meta(path: Path) -> Meta:
    """Read and check a folder's meta.json. Raises UserError where it is missing or malformed."""
    where = str(path / META)
    try:
        if (path / META).stat().st_size > MAX_META:
            raise UserError(f"has more than {MAX_META} bytes", where)
        values = json.loads((path / META).read_text(encoding="utf-8"))
        version = values.pop("format", None)
        if version != FORMAT:
            raise UserError(f"format {version!r} is not known", where, "prepare the set again")
        meta = cast(Meta, _Checked.validate_python(values))
    except OSError as error:
        raise UserError(
            "is not a prepared set", str(path), "consistune data prepare SOURCE DEST makes one"
        ) from error
    except (ValidationError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(
            f"is not what consistune wrote ({' '.join(str(error).split())[:120]!a})", where
        ) from error
    if min(meta.shape) < 1 or max(meta.shape) > MAX_SIDE:
        raise UserError(f"{meta.shape} is not a shape of images", where)
    if meta.latents is not None:
        meta.latents.check_shape(meta.shape, where)
    for name, part in meta.parts.items():
        if (
            name not in SIDES
            or not 0 <= part.images < MAX_IMAGES
            or len(part.offsets) != len(meta.class_names) + 1
            or list(part.offsets) != sorted(part.offsets)
            or (part.offsets[0], part.offsets[-1]) != (0, part.images)
        ):
            raise UserError(f"the offsets of {name!a} do not fit its images and classes", where)
    if "train" not in meta.parts:
        raise UserError("names no training images", where)
    return meta


def open_part(path: Path, meta: Meta, side: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """One side's images, mapped, and labels, in memory.

    Raises UserError where the files do not have the size, or the labels, that meta.json says.
    """
    part = meta.parts[side]
    images = npy.open_mapped(path / side / IMAGES, (part.images, *meta.shape), meta.dtype)
    labels = np.array(npy.open_mapped(path / side / LABELS, (part.images,), np.int64))
    sizes = np.diff(np.array(part.offsets))
    if not np.array_equal(labels, np.repeat(np.arange(len(sizes)), sizes)):
        raise UserError("does not hold the labels that meta.json says", str(path / side / LABELS))
    return images, labels


def damaged(path: Path, meta: Meta) -> list[str]:
    """The files that are missing, or whose SHA-256 is not the recorded one."""
    recorded = {
        f"{side}/{name}": sha256 for side, part in meta.parts.items() for name, sha256 in part.sha256.items()
    }
    names = [
        name
        for name, sha256 in recorded.items()
        if not (path / name).is_file() or file_digest(path / name) != sha256
    ]
    if meta.latents is None:
        return names
    pictures = path / PICTURES
    return [*names, *(f"{PICTURES}/{name}" for name in damaged(pictures, read_meta(pictures)))]
