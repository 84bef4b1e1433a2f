"""Which format a path holds, by what is there."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from consistune.data.sources import batches
from consistune.data.sources.base import Source
from consistune.errors import UserError

Format = Literal["cifar", "imagenet-batches", "folder", "zip", "npz", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class SourceOptions:
    """What a source cannot tell of itself.

    Attributes:
        format: one of FORMATS; None: found out.
        labels: a CSV or JSON file of labels (folder, zip), "fine" or "coarse" (CIFAR-100), a column's name
            (parquet).
        layout: "nhwc" or "nchw" (npz), where the shape does not tell.
    """

    format: str | None = None
    labels: str | None = None
    layout: str | None = None


def detect(path: Path) -> str:
    """The format of a path. Raises UserError where it has none that is known."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if batches.is_cifar(names):
            return "cifar"
        if any(batches.is_imagenet_batch(name) for name in names):
            return "imagenet-batches"
        if any(name.endswith(".parquet") for name in names) or any((path / "data").glob("*.parquet")):
            return "parquet"
        return "folder"
    if not path.is_file():
        raise UserError("is neither a file nor a folder", str(path))
    if batches.is_imagenet_batch(path.name):
        return "imagenet-batches"
    if path.suffix in (".npz", ".npy"):
        return "npz"
    if path.suffix == ".parquet":
        return "parquet"
    if zipfile.is_zipfile(path):
        return "zip"
    if batches.cifar_in_tar(path):
        return "cifar"
    raise UserError("is in no format that is known", str(path), f"--format says which: {', '.join(FORMATS)}")


def open_source(path: Path, options: SourceOptions, work: Path) -> Source:
    """The source at that path; `work` is where what cannot be read in place is unpacked.

    Raises UserError for what is malformed, and for options that mean nothing to its format.
    """
    form = options.format or detect(path)
    if form not in FORMATS:
        raise UserError(f"unknown format {form!r}", "--format", f"known are: {', '.join(FORMATS)}")
    if not path.exists():
        raise UserError("is not there", str(path))
    if form == "folder" and not path.is_dir():
        raise UserError("is not a folder", str(path))
    if form in ("zip", "npz") and not path.is_file():
        raise UserError("is not a file", str(path))
    if options.layout is not None and (form != "npz" or options.layout not in ("nhwc", "nchw")):
        raise UserError(
            f"--layout {options.layout} means nothing to {form}", str(path), "nhwc, nchw: for npz"
        )
    if options.labels is not None and form in ("imagenet-batches", "npz"):
        raise UserError(f"--labels means nothing to {form}", str(path), "its labels are in it")
    work.mkdir(parents=True, exist_ok=True)
    match form:
        case "cifar":
            return batches.open_cifar(path, work, options.labels)
        case "imagenet-batches":
            return batches.open_imagenet_batches(path, work)
        case "npz":
            from consistune.data.sources.npz import open_npz

            return open_npz(path, work, options.layout)
        case "zip":
            from consistune.data.sources.zips import open_zip

            return open_zip(path, options.labels)
        case "parquet":
            from consistune.data.sources.parquet import open_parquet

            return open_parquet(path, options.labels)
    from consistune.data.sources.files import open_folder

    return open_folder(path, options.labels)
