"""Small image sets in the formats of other projects, and their pixels."""

import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def pixels(count: int, *shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(array: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(buffer, form, **options)
    return buffer.getvalue()


def edm_zip(path: Path, images: Any, labels: list[int] | None, prefix: str = "", **extra: Any) -> Path:
    names = [f"{i // 3:05d}/img{i:08d}.png" for i in range(len(images))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, image in zip(names, images, strict=True):
            data = image if isinstance(image, bytes) else encoded(image)
            archive.writestr(prefix + name, data)
        if labels is not None:
            table = [list(pair) for pair in zip(names, labels, strict=True)]
            archive.writestr(prefix + "dataset.json", json.dumps({"labels": table, **extra}))
    return path


def class_folders(root: Path, images: Any, labels: list[str]) -> Path:
    """ROOT/LABEL/NNNN.png"""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:04d}.png").write_bytes(image if isinstance(image, bytes) else encoded(image))
    return root


def python_2(value: Any) -> bytes:
    """As Python 2's cPickle writes: strings as `U`/`T`, protocol 2."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python_2(k) + python_2(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(python_2(v) for v in value) + b"e"
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return b"T" + len(data).to_bytes(4, "little") + data
    if isinstance(value, np.ndarray):
        shape = b"(" + b"".join(b"J" + n.to_bytes(4, "little") for n in value.shape) + b"t"
        state = (
            b"(K\x01" + shape + b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff"
        )
        state += b"\xff\xff\xffK\x00tb\x89" + python_2(value.tobytes()) + b"t"
        return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state + b"b"
    return b"J" + int(value).to_bytes(4, "little", signed=True)


def cifar_files(images: Pixels, labels: list[int], batches: int, test: int) -> dict[str, bytes]:
    """CIFAR-10's files: `batches` training batches, and the last `test` images as the test batch."""
    edges = np.linspace(0, len(images) - test, batches + 1).round().astype(int).tolist()
    parts = {f"data_batch_{k + 1}": (edges[k], edges[k + 1]) for k in range(batches)}
    parts["test_batch"] = (len(images) - test, len(images))
    files = {"batches.meta": {"label_names": [f"name {k}" for k in range(10)], "num_cases_per_batch": 9}}
    for name, (a, b) in parts.items():
        rows = images[a:b].reshape(b - a, -1)
        names = [f"img{k}.png" for k in range(a, b)]
        files[name] = {"batch_label": name, "labels": labels[a:b], "data": rows, "filenames": names}  # type: ignore[dict-item]
    return {name: b"\x80\x02" + python_2(value) + b"." for name, value in files.items()}


def tar(path: Path, files: dict[str, bytes], folder: str = "cifar-10-batches-py") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def imagenet_batches(root: Path, images: Pixels, labels: list[int], npz: bool, val: int) -> Path:
    """Two training batches and the last `val` images as val_data; labels as the files have them, from 1."""
    root.mkdir()
    half = (len(images) - val) // 2
    parts = {"train_data_batch_1": (0, half), "train_data_batch_10": (half, len(images) - val)}
    parts["val_data"] = (len(images) - val, len(images))
    for name, (a, b) in parts.items():
        entries: dict[str, Any] = {"data": images[a:b].reshape(b - a, -1), "labels": labels[a:b]}
        if name != "val_data":
            entries["mean"] = entries["data"].mean(0)
        if npz:
            np.savez(root / f"{name}.npz", **entries)
        else:
            (root / name).write_bytes(pickle.dumps(entries, 3))
    return root
