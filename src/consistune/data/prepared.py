"""The prepared format: a folder with meta.json and, for training and held-out images, two npy files.

    DEST/meta.json
    DEST/train/images.npy      uint8 [n, C, H, W]; images of a class in consecutive rows
    DEST/train/labels.npy      int64 [n], ascending
    DEST/held-out/…            the same, where images are held out

No torch here: reading it takes numpy alone.
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
from consistune.system.files import file_digest, write_atomically

FORMAT = 1
META, IMAGES, LABELS = "meta.json", "images.npy", "labels.npy"
SIDES = ("train", "held-out")
MAX_META = 1 << 28
MAX_SIDE, MAX_IMAGES = 1 << 16, 1 << 40


@dataclass(frozen=True)
class Part:
    """One side: number of images; class k is rows offsets[k] … offsets[k + 1] − 1; the files' SHA-256."""

    images: int
    offsets: tuple[int, ...]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Meta:
    """What a prepared folder says of itself (meta.json).

    Attributes:
        source: path, kind, sha256 (of several files: of the sorted lines `sha256  bytes  name`).
        shape: (channels, height, width).
        transform: what was done to every image.
        class_names: one a label.
        labelled: False: there were no labels, all are 0.
        held_out: the rule by which images were held out; None: none were.
        parts: "train", and "held-out" where there is one.
        bad: {image, reason} of the images that were left out.
        notes: how the source was understood, where that was not plain.
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

    @property
    def bytes(self) -> int:
        return sum(part.images for part in self.parts.values()) * int(np.prod(self.shape))


_Checked = TypeAdapter(checked(Meta, config=ConfigDict(extra="forbid"), frozen=True))


def write_meta(path: Path, meta: Meta) -> None:
    """One key a line."""
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in {"format": FORMAT, **asdict(meta)}.items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # A file's name need not be text; a byte that is none becomes the JSON escape that reads back as it was.
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def is_prepared(path: Path) -> bool:
    return (path / META).is_file()


def read_meta(path: Path) -> Meta:
    """The meta.json of a prepared folder. Raises UserError where it is none, or contradicts itself."""
    where = str(path / META)
    try:
        if (path / META).stat().st_size > MAX_META:
            raise UserError(f"has more than {MAX_META} bytes", where)
        found = json.loads((path / META).read_text(encoding="utf-8"))
        version = found.pop("format", None)
        if version != FORMAT:
            raise UserError(f"format {version!r} is not known", where, "prepare the set again")
        meta = cast(Meta, _Checked.validate_python(found))
    except OSError as error:
        raise UserError(
            "is not a prepared set", str(path), "consistune data prepare SOURCE DEST makes one"
        ) from error
    except (ValidationError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"is not what consistune wrote ({' '.join(str(error).split())[:120]!a})", where
        ) from error
    if min(meta.shape) < 1 or max(meta.shape) > MAX_SIDE:
        raise UserError(f"{meta.shape} is no shape of images", where)
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


def open_part(path: Path, meta: Meta, side: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images, mapped, and labels, read, of one side.

    Raises UserError where the files are not of the size that meta.json says, or the labels not in its order.
    """
    part = meta.parts[side]
    images = npy.mapped(path / side / IMAGES, (part.images, *meta.shape), np.uint8)
    labels = np.array(npy.mapped(path / side / LABELS, (part.images,), np.int64))
    sizes = np.diff(np.array(part.offsets))
    if not np.array_equal(labels, np.repeat(np.arange(len(sizes)), sizes)):
        raise UserError("does not hold the labels that meta.json says", str(path / side / LABELS))
    return images, labels


def damaged(path: Path, meta: Meta) -> list[str]:
    """Files whose SHA-256 is not the one that was written."""
    found = []
    for side, part in meta.parts.items():
        for name, sha256 in part.sha256.items():
            file = path / side / name
            if not file.is_file() or file_digest(file) != sha256:
                found.append(f"{side}/{name}")
    return found
