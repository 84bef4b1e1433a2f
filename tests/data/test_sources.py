"""Sources: a path's format is detected, a new format is one row, and errors name what is wrong."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consistune.data.images import read_unprepared
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.survey import ImageOptions
from consistune.data.sources.base import Raw, Source, SourceOptions
from consistune.data.sources.detect import FORMATS, Format, detect
from consistune.errors import UserError
from tests.support.makers import (
    Pixels,
    edm_zip,
    pixels,
)
from tests.support.prepared import check, prepared


def test_formats_are_detected(shared: Path, tmp_path: Path) -> None:
    formats = shared / "data" / "formats"
    expected = {
        formats / "cifar-format" / "cifar-10-python.tar.gz": "cifar",
        formats / "imagenet64-format" / "Imagenet64_npz": "imagenet-batches",
        formats / "imagenet64-format" / "Imagenet64_pickle": "imagenet-batches",
        formats / "imagenet64-format" / "Imagenet64_pickle" / "val_data": "imagenet-batches",
        formats / "imagenet64-format" / "ILSVRC-tree": "folder",
        shared / "data" / "emoji32.zip": "zip",
    }
    assert {path: detect(path) for path in expected} == expected
    shutil.copy(shared / "data" / "emoji32.zip", tmp_path / "no-suffix")
    assert detect(tmp_path / "no-suffix") == "zip"


def test_an_ending_may_be_written_in_capitals(tmp_path: Path) -> None:
    images = pixels(4, 3, 8, 8)
    np.save(tmp_path / "set.npy", images)
    (tmp_path / "set.npy").rename(tmp_path / "SET.NPY")
    meta, train, _ = prepared(tmp_path / "SET.NPY")
    assert meta.source["kind"] == "npy"
    check(train, images, [0] * 4)


class Blank(Source):
    """White images of 2×2 pixels: as many as the file says."""

    @staticmethod
    def read(task: Any) -> Iterator[Raw]:
        first, last = task
        yield from np.full((last - first, 2, 2, 3), 255, np.uint8)

    def name(self, item: int) -> str:
        return f"blank {item}"

    def task(self, first: int, last: int) -> Any:
        return first, last


def open_blank(path: Path, _options: SourceOptions, _work: Path) -> Source:
    labels = np.zeros(int(path.read_text()), np.int64)
    return Blank(kind="blank", path=path, labels=labels, class_names=("a",), shape=(3, 2, 2))


def test_a_new_format_is_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Format(lambda path: path.suffix == ".blank", open_blank, (), "file")
    monkeypatch.setitem(FORMATS, "blank", row)
    (tmp_path / "set.blank").write_text("300")
    assert detect(tmp_path / "set.blank") == "blank"
    meta, train, _ = prepared(tmp_path / "set.blank")
    assert meta.source["kind"] == "blank"
    check(train, np.full((300, 3, 2, 2), 255, np.uint8), [0] * 300)
    with pytest.raises(UserError, match="--labels x means nothing to blank"):
        prepared(tmp_path / "set.blank", labels="x")
    with pytest.raises(UserError, match="is not a file"):
        prepared(tmp_path, format="blank")


def wrong(source: Path, **options: Any) -> str:
    dest = source.parent / "dest"
    with pytest.raises(UserError) as caught:
        prepare(source, dest, PrepareOptions(SourceOptions(**options)))
    assert not dest.exists()
    assert not dest.with_name("dest.part").exists()
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_what_is_wrong_is_named_and_nothing_is_left_behind(tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"not a zip")
    (tmp_path / "bare").mkdir()
    with zipfile.ZipFile(tmp_path / "bare.zip", "w") as archive:
        archive.writestr("a.txt", "")
    image = pixels(1, 4, 4)
    edm_zip(tmp_path / "floats.zip", image, [0.5])  # type: ignore[list-item]
    edm_zip(tmp_path / "negative.zip", image, [-1])
    edm_zip(tmp_path / "names.zip", image, [3], class_names=["only"])
    edm_zip(tmp_path / "sizes.zip", [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)], [0, 0])
    np.savez(tmp_path / "float.npz", images=image.astype(np.float32))
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}], dtype=object))
    np.savez(tmp_path / "labels.npz", images=image, labels=np.array([1, 2]))
    np.savez(tmp_path / "other.npz", x=image)
    for name, what in {
        "no.zip": "no format that is known",
        "missing": "neither a file nor a folder",
        "bare": "holds no image",
        "bare.zip": "holds no images",
        "floats.zip": "labels must be numbers",
        "negative.zip": "labels must be numbers",
        "names.zip": "class_names",
        "sizes.zip": "--size",
        "float.npz": "uint8",
        "objects.npz": "never unpickled",
        "labels.npz": "as many integer labels",
        "other.npz": "has no images",
    }.items():
        assert what in wrong(tmp_path / name)
    assert "--format" in wrong(tmp_path / "bare", format="tiff")
    assert "means nothing" in wrong(tmp_path / "bare", layout="nchw")
    assert "is not a folder" in wrong(tmp_path / "sizes.zip", format="folder")


def test_one_image_of_a_thousand_that_is_of_another_size_is_listed(tmp_path: Path) -> None:
    images: list[Pixels] = [*pixels(600, 4, 4)]
    images[300] = np.zeros((4, 5), np.uint8)
    meta, train, _ = prepared(edm_zip(tmp_path / "a.zip", images, [0] * 600))
    assert [entry["reason"] for entry in meta.bad] == ["is 5×4, the set 4×4"]
    assert len(train) == 599
    with pytest.raises(UserError, match="img00000300"):
        read_unprepared(tmp_path / "a.zip")


def test_grey_is_not_assumed_of_colour(tmp_path: Path) -> None:
    """Only the sample is looked at to find out what a set is; a colour image beyond it is not made grey."""
    images: list[Pixels] = [*pixels(600, 4, 4)]
    images[300] = pixels(1, 4, 4, 3)[0]
    source = edm_zip(tmp_path / "a.zip", images, [0] * 600)
    meta, train, _ = prepared(source)
    assert train.image_shape == (1, 4, 4)
    assert ["in colour" in entry["reason"] for entry in meta.bad] == [True]
    meta = prepare(source, tmp_path / "rgb", PrepareOptions(images=ImageOptions(mode="rgb")))
    assert (meta.shape, meta.bad) == ((3, 4, 4), [])
