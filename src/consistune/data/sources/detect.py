"""The table of formats, and which of them a path has."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from consistune.data.sources import batches, files, npz, parquet, tars, zips
from consistune.data.sources.base import Source, SourceOptions
from consistune.errors import UserError


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        matches: whether a path, which exists, has it.
        open: (path, options, work folder) → the source.
        options: those of `SourceOptions` that mean something to it.
        needs: whether the path must be a file or a folder; None: either.
    """

    matches: Callable[[Path], bool]
    open: Callable[[Path, SourceOptions, Path], Source]
    options: tuple[str, ...] = ("labels",)
    needs: Literal["file", "folder"] | None = None


ZIP = b"PK\x03\x04"
"""How a ZIP begins."""
FORMATS = {
    "cifar": Format(batches.is_cifar, batches.open_cifar),
    "imagenet-batches": Format(batches.is_imagenet_batches, batches.open_imagenet_batches, ()),
    "npz": Format(lambda path: path.suffix.lower() in (".npz", ".npy"), npz.open_npz, ("layout",), "file"),
    "parquet": Format(parquet.is_parquet, parquet.open_parquet),
    "tar": Format(tars.is_tar, tars.open_tar),
    "zip": Format(zipfile.is_zipfile, zips.open_zip, needs="file"),
    "folder": Format(Path.is_dir, files.open_folder, ("labels", "links"), "folder"),
}
"""By name; a path has the first one that matches. To read another format, add a row."""


def detect(path: Path) -> str:
    """The format of a path. Raises UserError where no known one matches."""
    if not path.is_dir() and not path.is_file():
        raise UserError("is neither a file nor a folder", str(path))
    for name, known in FORMATS.items():
        if (known.needs != "file" or path.is_file()) and known.matches(path):
            return name
    start = files.start_of(path) if path.is_file() else b""
    if start.startswith((ZIP, *tars.OPENERS)):
        kind = "a ZIP" if start.startswith(ZIP) else "a packed tar"
        raise UserError(
            f"begins as {kind}, but cannot be read as one",
            str(path),
            "is the download complete? Of packed files only tars are read",
        )
    raise UserError("is in no format that is known", str(path), f"--format says which: {', '.join(FORMATS)}")


def open_source(path: Path, options: SourceOptions, work: Path) -> Source:
    """The source at that path; `work` is where what cannot be read in place is unpacked.

    Raises UserError for a malformed source, and for options that have no effect on its format.
    """
    name = options.format or detect(path)
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}", "--format", f"known are: {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if not path.exists():
        raise UserError("is not there", str(path))
    if chosen.needs is not None and not (path.is_file() if chosen.needs == "file" else path.is_dir()):
        raise UserError(f"is not a {chosen.needs}", str(path))
    if options.layout not in (None, "nhwc", "nchw"):
        raise UserError(f"unknown layout {options.layout!r}", "--layout", "nhwc or nchw")
    for option, value in (("labels", options.labels), ("layout", options.layout), ("links", options.links)):
        if value and option not in chosen.options:
            given = f"--{option} {value}" if option != "links" else "--follow-links"
            raise UserError(f"{given} means nothing to {name}", str(path), "leave the option out")
    work.mkdir(parents=True, exist_ok=True)
    return chosen.open(path, options, work)
