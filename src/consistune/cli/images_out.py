"""Where `consistune sample` writes: a grid, an .npz file or a folder of PNG files, batch by batch."""

import re
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from consistune.cli.options import check_choice
from consistune.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FORMATS = {"png": ".png", "npz": ".npz", "folder": ""}
OTHER_FILES = re.compile(
    r"\.(jpe?g|jfif|webp|gif|bmp|tiff?|avif|svg|pdf|npy|zip|tar|t?gz|xz|7z|pt|pth|pkl|h5|csv|json|ya?ml|txt|"
    r"safetensors|onnx|parquet|mp4)",
    re.IGNORECASE,
)
"""Endings of files that this program does not write. Another word after a dot belongs to a folder's name."""
MOST_IN_A_GRID = 10_000


class Seeds:
    """Seeds as ranges: a billion of them take no memory."""

    def __init__(self, ranges: list[range]) -> None:
        self.ranges = ranges

    def __len__(self) -> int:
        return sum(map(len, self.ranges))

    def __iter__(self) -> Iterator[int]:
        return (seed for part in self.ranges for seed in part)

    def __contains__(self, seed: int) -> bool:
        return any(seed in part for part in self.ranges)

    def batches(self, size: int) -> Iterator[list[int]]:
        """Lists of `size` seeds, the last one perhaps shorter."""
        part: list[int] = []
        for seed in self:
            part.append(seed)
            if len(part) == size:
                yield part
                part = []
        if part:
            yield part


class Writer(Protocol):
    def write(self, images: "Tensor", seeds: list[int], labels: list[int] | None) -> None:
        """Take the next images, uint8 [n, C, H, W]."""


def format_of(out: Path, format: str | None) -> str:
    """The format: as named, or by the ending of `out`. Raises UserError where they do not fit each other."""
    check_choice(format, tuple(FORMATS), "--format")
    ending = next((name for name, suffix in FORMATS.items() if suffix and out.suffix.lower() == suffix), None)
    if format == "folder" or (format is None and ending is None and not OTHER_FILES.fullmatch(out.suffix)):
        return "folder"
    if ending is None or format not in (None, ending):
        asked = f"--format {format} writes a {FORMATS[format]} file" if format else "it is not written"
        raise UserError(f"{out.name!a}: {asked}", "--out", "use NAME.png, NAME.npz, or a folder's name")
    return ending


def check_out(out: Path, format: str, seeds: Seeds) -> None:
    """Raises UserError where the images of these seeds could not be written there, or replace other files."""
    from consistune.system.files import check_writable
    from consistune.system.own import check_file

    if format == "folder":
        check_writable(out, "--out", folder=True)
        for path in sorted(out.glob("*.png")):
            if path.stem.isdecimal() and path.name == name_of(int(path.stem)) and int(path.stem) in seeds:
                check_file(path, "--out")
    else:
        check_file(out, "--out", ("arr_0",))
    if format == "png" and len(seeds) > MOST_IN_A_GRID:
        what = f"a grid of {len(seeds):,} images is more than {MOST_IN_A_GRID:,}"
        raise UserError(what, "--out", "use --format folder, or NAME.npz")


@contextmanager
def opened(
    out: Path, format: str, seeds: Seeds, shape: tuple[int, int, int], labelled: bool, latents: bool = False
) -> Iterator[Writer]:
    """The writer of a format. A grid and an .npz file get their names when the block ends.

    png: a grid. npz: arrays arr_0 [N, H, W, C], uint8 or fp32 latents, seeds [N] and, with labels,
    arr_1 [N]. folder: SEED.png each.
    """
    from consistune.system.files import atomic_file

    if format != "npz" and shape[0] not in (1, 3):
        raise UserError(f"images of {shape[0]} channels are no pictures", "--out", "use NAME.npz")
    if format == "folder":
        yield Folder(out)
    elif format == "png":
        sheet = Sheet()
        yield sheet
        sheet.save(out)
    else:
        with atomic_file(out) as file:
            archive = Archive(file, len(seeds), shape, "<f4" if latents else "|u1")
            try:
                yield archive
                archive.finish(seeds, labelled)
            finally:
                archive.archive.fp = None  # or zipfile, half-way, would write to the closed file later


def name_of(seed: int) -> str:
    """The file of a seed's image in a folder."""
    return f"{seed:06d}.png"


class Folder:
    """A PNG file an image."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, images: "Tensor", seeds: list[int], labels: list[int] | None) -> None:
        from consistune.pages.pictures import save_png

        del labels
        for seed, image in zip(seeds, images, strict=True):
            save_png(self.path / name_of(seed), image)


class Sheet:
    """All images as one picture."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def write(self, images: "Tensor", seeds: list[int], labels: list[int] | None) -> None:
        del seeds, labels
        self.parts.append(images)

    def save(self, out: Path) -> None:
        import torch

        from consistune.pages.pictures import save_grid

        save_grid(out, torch.cat(self.parts))


class Archive:
    """An .npz file whose largest array is written as its rows come."""

    def __init__(self, file: IO[bytes], count: int, shape: tuple[int, int, int], dtype: str) -> None:
        self.count = count
        self.archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
        channels, height, width = shape
        self.pixels = self._begin("arr_0", (count, height, width, channels), dtype)
        self.labels: list[np.ndarray] = []

    def _begin(self, name: str, shape: tuple[int, ...], dtype: str) -> IO[bytes]:
        from numpy.lib import format as npy

        file = self.archive.open(f"{name}.npy", "w", force_zip64=True)
        npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        return file

    def write(self, images: "Tensor", seeds: list[int], labels: list[int] | None) -> None:
        import numpy as np

        del seeds
        self.pixels.write(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
        if labels is not None:
            self.labels.append(np.array(labels, "<i4"))

    def finish(self, seeds: Seeds, labelled: bool) -> None:
        import numpy as np

        self.pixels.close()
        parts = (np.array(part, "<i8") for part in seeds.batches(1 << 16))
        self._write("seeds", parts)
        if labelled:
            self._write("arr_1", (part.astype("<i8") for part in self.labels))
        self.archive.close()

    def _write(self, name: str, parts: "Iterable[np.ndarray]") -> None:
        with self._begin(name, (self.count,), "<i8") as file:
            for part in parts:
                file.write(part.tobytes())
