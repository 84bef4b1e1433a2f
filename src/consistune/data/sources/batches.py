"""CIFAR-10, CIFAR-100 and downsampled ImageNet, as their authors distribute them.

CIFAR: https://www.cs.toronto.edu/~kriz/cifar.html (python version); rows of data are 3·32·32 planar values.
Downsampled ImageNet: 1707.08819 and image-net.org's files; rows of 3·s·s planar values, labels from 1.
"""

import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.arrays import ArrayRows, Block, Place, check_labels, read_batch
from consistune.data.sources.npz import Npz
from consistune.errors import UserError
from consistune.pickles.arrays import read_arrays

CIFAR_FILES = re.compile(r"batches\.meta|data_batch_[1-9]|test_batch|meta|train|test")
IMAGENET_FILES = re.compile(r"(train_data(_batch_(?P<number>[0-9]+))?|val_data)(\.npz)?")
MAX_MEMBERS, MAX_MEMBER = 100, 1 << 30
IMAGENET_CLASSES = 1000


def is_cifar(names: set[str]) -> bool:
    """Whether a folder with these files is CIFAR's."""
    return {"batches.meta", "data_batch_1"} <= names or {"meta", "train", "test"} <= names


def cifar_in_tar(path: Path) -> bool:
    """Whether a tar archive begins like CIFAR's."""
    try:
        with tarfile.open(path, "r:*") as archive:
            for _, member in zip(range(MAX_MEMBERS), archive, strict=False):
                if Path(member.name).parent.name in ("cifar-10-batches-py", "cifar-100-python"):
                    return True
    except (tarfile.TarError, OSError, EOFError):
        return False
    return False


def unpack_cifar(path: Path, work: Path) -> Path:
    """The batches out of the archive into the work folder, by their known names only; nothing else of it.

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
                    raise UserError(
                        f"holds more or larger files than CIFAR ({member.name[:80]!a})", str(path)
                    )
                name = Path(member.name).name
                if not CIFAR_FILES.fullmatch(name) or member.isdir():
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is None:
                    raise UserError(f"{member.name[:80]!a} is not a plain file", str(path))
                (folder / name).write_bytes(content.read())
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"cannot be unpacked ({error})", str(path), "is the download complete?") from error
    (folder / "complete").touch()
    return folder


def open_cifar(path: Path, work: Path, labels: str | None) -> ArrayRows:
    """CIFAR's folder or archive; the test batch is the held-out set.

    Args:
        labels: for CIFAR-100, "fine" (the default, 100 classes) or "coarse" (20).
    """
    folder = path if path.is_dir() else unpack_cifar(path, work)
    names = {entry.name for entry in folder.iterdir()}
    hundred = "batches.meta" not in names
    if hundred and not {"meta", "train", "test"} <= names:
        raise UserError("holds neither CIFAR-10's nor CIFAR-100's batches", str(path))
    if labels not in (("fine", "coarse", None) if hundred else (None,)):
        raise UserError(f"{labels!r} is no kind of labels here", "--labels", "CIFAR-100 has fine and coarse")
    key = f"{labels or 'fine'}_labels" if hundred else "labels"
    titles = f"{labels or 'fine'}_label_names" if hundred else "label_names"
    class_names = _names(folder / ("meta" if hundred else "batches.meta"), titles)
    training = ["train"] if hundred else sorted(n for n in names if n.startswith("data_batch_"))
    testing = [name for name in ("test" if hundred else "test_batch",) if name in names]
    blocks, values, held_out = [], [], []
    for name in [*training, *testing]:
        entries, place = read_batch(folder / name, work)
        blocks.append(_planar(place, str(folder / name)))
        values.append(check_labels(entries.get(key), len(blocks[-1]), f"{name}, {key}"))
        held_out.append(np.full(len(blocks[-1]), name in testing))
    found = np.concatenate(values)
    if len(found) and int(found.max()) >= len(class_names):
        raise UserError(f"a label is {found.max()}, of {len(class_names)} classes", str(path))
    return ArrayRows(
        kind=f"CIFAR-{100 if hundred else 10}, python version",
        path=path,
        labels=found,
        class_names=class_names,
        own_held_out=np.concatenate(held_out) if testing else None,
        containers=[path] if path.is_file() else [folder / n for n in sorted(names & _used(names))],
        blocks=blocks,
    )


def _used(names: set[str]) -> set[str]:
    return {name for name in names if CIFAR_FILES.fullmatch(name)}


def _names(path: Path, key: str) -> tuple[str, ...]:
    if path.stat().st_size > MAX_MEMBER:
        raise UserError("is larger than any list of names", str(path))
    found = read_arrays(path.read_bytes(), str(path))
    names = found.get(key) if isinstance(found, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise UserError(f"has no list of names under {key!r}", str(path))
    return tuple(name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names)


def _planar(place: Place, where: str) -> Block:
    """Rows of 3·s·s values as [3, s, s]."""
    count, values = place.shape
    side = round((values / 3) ** 0.5)
    if 3 * side * side != values or not side:
        raise UserError(f"rows of {values} values are not square RGB images", where)
    return Block(Place(place.path, place.offset, (count, 3, side, side)), planar=True)


# --- downsampled ImageNet ----------------------------------------------------------------------------------


def is_imagenet_batch(name: str) -> bool:
    return IMAGENET_FILES.fullmatch(name) is not None


def open_imagenet_batches(path: Path, work: Path) -> ArrayRows:
    """A folder of `train_data_batch_N` (or `train_data`) and `val_data`, pickled or npz; or one such file.

    Labels become 0 … 999 (the files count from 1); `val_data` is the held-out set. The classes are named by
    the files' own numbers: which synset a number stands for is in their map_clsloc.txt, not in these files.
    """
    files = [path] if path.is_file() else [entry for entry in path.iterdir() if is_imagenet_batch(entry.name)]
    if not files:
        raise UserError("holds no train_data_batch_N or val_data", str(path))
    files.sort(key=_batch_order)
    stems = [file.name.removesuffix(".npz") for file in files]
    if len(set(stems)) < len(stems):
        raise UserError("holds a batch both as pickle and as npz", str(path), "leave one of them")
    blocks, labels = [], []
    for file in files:
        entries, place = _imagenet_batch(file, work)
        blocks.append(_planar(place, str(file)))
        labels.append(check_labels(entries, len(blocks[-1]), f"{file}, labels", first=1))
    held_out = np.concatenate([np.full(len(b), s == "val_data") for b, s in zip(blocks, stems, strict=True)])
    found = np.concatenate(labels)
    classes = max(IMAGENET_CLASSES, int(found.max(initial=0)) + 1)
    return ArrayRows(
        kind="downsampled ImageNet",
        path=path,
        labels=found,
        class_names=tuple(str(k + 1) for k in range(classes)),
        own_held_out=held_out if held_out.any() and not held_out.all() else None,
        containers=files,
        blocks=blocks,
    )


def _batch_order(file: Path) -> tuple[bool, int, str]:
    match = IMAGENET_FILES.fullmatch(file.name)
    assert match is not None  # its caller kept only such names
    return file.name.startswith("val"), int(match["number"] or 0), file.name


def _imagenet_batch(file: Path, work: Path) -> tuple[Any, Place]:
    if file.suffix == ".npz":
        archive = Npz(file, work)
        if "data" not in archive or "labels" not in archive:
            raise UserError("has no data and labels", str(file))
        place = archive.place("data")
        if len(place.shape) != 2:
            raise UserError(f"data must be [images, values], got {place.shape}", str(file))
        return archive.read("labels"), place
    entries, place = read_batch(file, work)
    return entries.get("labels"), place
