"""CIFAR-10, CIFAR-100 and downsampled ImageNet, as their authors distribute them.

CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html (python version); rows of data are 3·32·32 planar values.
Downsampled ImageNet: 1707.08819 and image-net.org's files; rows of 3·s·s planar values, labels from 1.
"""

import re
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.arrays import ArrayRows, ImageArray, StoredArray, read_batch
from consistune.data.sources.base import SourceOptions
from consistune.data.sources.beside import is_junk
from consistune.data.sources.labels import brief, check_labels, repeated
from consistune.data.sources.npz import Npz
from consistune.data.sources.tars import DAMAGED
from consistune.errors import UserError
from consistune.pickles.arrays import read_arrays

CIFAR_FILES = re.compile(r"batches\.meta|data_batch_[1-9]|test_batch|meta|train|test")
CIFAR_BATCHES = 5
"""Training batches of CIFAR-10."""
CIFAR_REST = {"readme.html", "file.txt~", "complete"}
"""Files beside CIFAR's batches that hold nothing."""
IMAGENET_FILES = re.compile(r"(train_data(_batch_(?P<number>[0-9]+))?|val_data)(\.npz)?", re.IGNORECASE)
MAX_MEMBERS, MAX_MEMBER = 100, 1 << 30
IMAGENET_CLASSES = 1000
IMAGENET_REST = {"map_clsloc.txt"}
"""A file beside ImageNet's batches that is not needed."""


def is_cifar(path: Path) -> bool:
    """Whether a folder has CIFAR's files, or a tar archive begins like CIFAR's."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir() if entry.is_file()}
        ten = "batches.meta" in names and any(name.startswith("data_batch_") for name in names)
        return ten or {"meta", "train", "test"} <= names
    try:
        with tarfile.open(path, "r:*") as archive:
            for _, member in zip(range(MAX_MEMBERS), archive, strict=False):
                if Path(member.name).parent.name in ("cifar-10-batches-py", "cifar-100-python"):
                    return True
    except DAMAGED:
        return False
    return False


def _unpack_cifar(path: Path, work: Path) -> Path:
    """Write the archive's batches, chosen by their known names, to the work folder, and nothing else.

    Raises UserError for a member of a known name that is not a plain file, or is larger than any batch is.
    """
    folder = work / "cifar"
    if (folder / "complete").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path, "r:*") as archive:
            for number, member in enumerate(archive):
                if number >= MAX_MEMBERS or member.size > MAX_MEMBER:
                    what = f"holds more or larger files than CIFAR ({member.name[:80]!a})"
                    raise UserError(what, str(path))
                name = Path(member.name).name
                if not CIFAR_FILES.fullmatch(name) or member.isdir():
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    raise UserError(f"{member.name[:80]!a} is not a plain file", str(path))
                (folder / name).write_bytes(content.read())
    except DAMAGED as error:
        raise UserError(f"cannot be unpacked ({error})", str(path), "is the download complete?") from error
    (folder / "complete").touch()
    return folder


def open_cifar(path: Path, options: SourceOptions, work: Path) -> ArrayRows:
    """CIFAR's folder or archive; the test batch is the held-out set.

    For CIFAR-100, `options.labels` is "fine" (the default, 100 classes) or "coarse" (20).
    """
    folder = path if path.is_dir() else _unpack_cifar(path, work)
    names = {entry.name for entry in folder.iterdir()}
    hundred = "batches.meta" not in names
    if hundred and not {"meta", "train", "test"} <= names:
        raise UserError("holds neither CIFAR-10's nor CIFAR-100's batches", str(path))
    if options.labels not in (("fine", "coarse", None) if hundred else (None,)):
        what = f"{options.labels!r} is no kind of labels here"
        raise UserError(what, "--labels", "CIFAR-100 has fine and coarse")
    if hundred:
        prefix, meta, training, test = f"{options.labels or 'fine'}_label", "meta", ["train"], "test"
    else:
        training = sorted(n for n in names if n.startswith("data_batch_") and CIFAR_FILES.fullmatch(n))
        prefix, meta, test = "label", "batches.meta", "test_batch"
    class_names = _class_names(folder / meta, f"{prefix}_names")
    batches = [*training, test] if test in names else training
    arrays, parts = [], []
    for name in batches:
        entries, array = read_batch(folder / name, work)
        arrays.append(_planar(array, str(folder / name)))
        parts.append(check_labels(entries.get(f"{prefix}s"), len(arrays[-1]), f"{name}, {prefix}s"))
    labels = np.concatenate(parts)
    if len(labels) and int(labels.max()) >= len(class_names):
        raise UserError(f"a label is {labels.max()}, of {len(class_names)} classes", str(path))
    used = sorted(name for name in names if CIFAR_FILES.fullmatch(name))
    wanted = ["train", "test"] if hundred else [*(f"data_batch_{k + 1}" for k in range(CIFAR_BATCHES)), test]
    unused = [name for name in names if name not in used and name.casefold() not in CIFAR_REST]
    return ArrayRows(
        kind=f"CIFAR-{100 if hundred else 10}, python version",
        path=path,
        labels=labels,
        class_names=class_names,
        own_held_out=_rows_of(arrays, [name == test for name in batches]) if test in names else None,
        containers=[path] if path.is_file() else [folder / name for name in used],
        notes=[*repeated(class_names), *_gaps(wanted, used, unused)],
        sizes=[len(images) for images in arrays],
        arrays=arrays,
    )


def _gaps(wanted: Iterable[str], there: Collection[str], unused: Iterable[str]) -> list[str]:
    """Notes on the batches that are missing, and on the files that are not used."""
    missing = [name for name in wanted if name not in there]
    notes = [f"these batches are missing: {brief(missing)}"] if missing else []
    rest = sorted(name for name in unused if not is_junk(name))
    return notes + ([f"files that were not used: {brief(rest)}"] if rest else [])


def _class_names(path: Path, key: str) -> tuple[str, ...]:
    if path.stat().st_size > MAX_MEMBER:
        raise UserError("is larger than any list of names", str(path))
    entries = read_arrays(path.read_bytes(), str(path))
    names = entries.get(key) if isinstance(entries, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"has no list of names under {key!r}", str(path))
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _planar(array: StoredArray, where: str) -> ImageArray:
    """Rows of 3·s·s values as [3, s, s]."""
    count, values = array.shape
    side = round((values / 3) ** 0.5)
    if 3 * side * side != values or not side:
        raise UserError(f"rows of {values} values are not square RGB images", where)
    return ImageArray(StoredArray(array.path, array.offset, (count, 3, side, side)), planar=True)


def _rows_of(arrays: list[ImageArray], chosen: list[bool]) -> np.ndarray[Any, Any]:
    """bool [n]: the images of the chosen arrays."""
    return np.repeat(chosen, [len(images) for images in arrays])


# --- downsampled ImageNet ----------------------------------------------------------------------------------


def is_imagenet_batches(path: Path) -> bool:
    """Whether it is a batch of downsampled ImageNet, or a folder with one, by the files' names."""
    entries = path.iterdir() if path.is_dir() else [path]
    names = [entry.name for entry in entries if entry.is_file()]
    return any(IMAGENET_FILES.fullmatch(name) for name in names)


def open_imagenet_batches(path: Path, _options: SourceOptions, work: Path) -> ArrayRows:
    """A folder of `train_data_batch_N` (or `train_data`) and `val_data`, pickled or npz; or one such file.

    Labels become 0 … 999 (the files count from 1); `val_data` is the held-out set. The classes are named by
    the files' own numbers: which synset a number stands for is in their map_clsloc.txt, not in these files.
    """
    entries = [path] if path.is_file() else [entry for entry in path.iterdir() if entry.is_file()]
    matches = [(file, match) for file in entries if (match := IMAGENET_FILES.fullmatch(file.name))]
    if not matches:
        raise UserError("holds no train_data_batch_N or val_data", str(path))
    matches.sort(key=lambda f: (f[0].name.lower().startswith("val"), int(f[1]["number"] or 0), f[0].name))
    files = [file for file, _ in matches]
    stems = [file.name.lower().removesuffix(".npz") for file in files]
    if len(set(stems)) < len(stems):
        raise UserError("holds a batch both as pickle and as npz", str(path), "leave one of them")
    arrays, parts = [], []
    for file in files:
        values, array = _imagenet_batch(file, work)
        arrays.append(_planar(array, str(file)))
        parts.append(check_labels(values, len(arrays[-1]), f"{file}, labels", first=1))
    own = _rows_of(arrays, [stem == "val_data" for stem in stems])
    labels = np.concatenate(parts)
    classes = max(IMAGENET_CLASSES, int(labels.max(initial=0)) + 1)
    last = max((int(match["number"] or 0) for _, match in matches), default=0)
    wanted = [*(f"train_data_batch_{k + 1}" for k in range(last)), "val_data"] if path.is_dir() else []
    notes = _gaps(wanted, stems, [p.name for p in entries if p not in files and p.name not in IMAGENET_REST])
    if classes > IMAGENET_CLASSES:
        notes.append(f"the labels go to {classes}, beyond ImageNet's {IMAGENET_CLASSES:,} classes")
    return ArrayRows(
        kind="downsampled ImageNet",
        path=path,
        labels=labels,
        class_names=tuple(str(k + 1) for k in range(classes)),
        own_held_out=own if own.any() and not own.all() else None,
        containers=files,
        notes=notes,
        sizes=[len(images) for images in arrays],
        arrays=arrays,
    )


def _imagenet_batch(file: Path, work: Path) -> tuple[Any, StoredArray]:
    """A batch's labels and its array of pixels."""
    if file.suffix.lower() == ".npz":
        archive = Npz(file, work)
        if "data" not in archive.members or "labels" not in archive.members:
            raise UserError("has no data and labels", str(file))
        array = archive.locate("data")
        if len(array.shape) != 2:
            raise UserError(f"data must be [images, values], got {array.shape}", str(file))
        return archive.read("labels"), array
    entries, array = read_batch(file, work)
    return entries.get("labels"), array
