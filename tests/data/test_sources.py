"""Formats in: what comes out is what was put in, and what is wrong is named."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from sct.data.sources import read_edm_zip
from sct.errors import UserError


def write(path, arrays, labels, **extra) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i, array in enumerate(arrays):
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, "PNG")
            archive.writestr(f"00000/img{i}.png", buffer.getvalue())
        table = [[f"00000/img{i}.png", label] for i, label in enumerate(labels)]
        archive.writestr("dataset.json", json.dumps({"labels": table, **extra}))


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6)])
def test_images_and_labels_come_back(tmp_path, shape) -> None:
    arrays = [np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i in range(5)]
    write(tmp_path / "a.zip", arrays, [0, 2, 1, 1, 0], class_names=["x", "y", "z"])
    images, labels, names = read_edm_zip(tmp_path / "a.zip")
    expected = np.stack(arrays).reshape(5, 4, 6, -1).transpose(0, 3, 1, 2)
    assert torch.equal(images, torch.from_numpy(expected.copy()))
    assert labels.tolist() == [0, 2, 1, 1, 0]
    assert names == ("x", "y", "z")


def test_the_shared_set_reads(shared) -> None:
    images, labels, names = read_edm_zip(shared / "data" / "mnist10k.zip")
    assert images.shape == (9000, 1, 32, 32)
    assert torch.bincount(labels).tolist() == [905, 1017, 898, 936, 880, 769, 907, 958, 847, 883]
    assert len(names) == 10


def test_what_is_wrong_is_named(tmp_path) -> None:
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    with zipfile.ZipFile(tmp_path / "bare.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with zipfile.ZipFile(tmp_path / "gone.zip", "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 0]]}))
    write(tmp_path / "sizes.zip", [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)], [0, 0])
    for name, what in [
        ("no", "ZIP"),
        ("missing", "ZIP"),
        ("bare", "labels"),
        ("gone", "a.png"),
        ("sizes", "img1"),
    ]:
        with pytest.raises(UserError, match=what):
            read_edm_zip(tmp_path / f"{name}.zip")
