"""What lies beside the images is taken, refused, or named; nothing is left in silence."""

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from consistune.data.sources.base import SourceOptions
from consistune.data.sources.detect import open_source
from consistune.errors import UserError
from tests.data.test_archives import make_tar
from tests.data.test_layouts import PNG, found, lay, packed, refused, shard
from tests.data.test_splits import notes
from tests.support.makers import pixels


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("BMP", "a"), ("PPM", "b"), ("BMP", "c.dat"), ("JPEG", "x.txt"), ("PNG", "x.npy"), ("WEBP", "x.md"),
        ("ICO", "d"), ("JPEG2000", "e"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [False, True])
def test_an_image_of_any_name_is_seen(tmp_path: Path, form: str, name: str, zipped: bool) -> None:
    """Also one of a kind that is not read: it is listed when it is converted."""
    out = io.BytesIO()
    Image.fromarray(pixels(1, 8, 8, 3)[0]).save(out, form)
    source = lay(lay(tmp_path / "set", "0.png"), name, content=out.getvalue())
    lay(source, "P1.txt", content=b"P1 2 is the second of the persons")
    assert set(found(packed(source) if zipped else source)[0]) == {"0.png", name}


@pytest.mark.parametrize("name", ["a.pcx", "a.SGI"])
def test_an_image_of_a_kind_that_is_not_read_is_listed(tmp_path: Path, name: str) -> None:
    assert found(lay(tmp_path / "set", "0.png", name))[2] == [name]


@pytest.mark.parametrize(
    "name", ["more.zip", "more.tar", "more.npz", "x.png.gz", "clip.MP4", "below/more.parquet"]
)
@pytest.mark.parametrize("zipped", [False, True])
def test_archives_and_films_beside_images_are_named(tmp_path: Path, name: str, zipped: bool) -> None:
    source = lay(lay(tmp_path / "set", "a/0.png", "b/0.png"), name, content=b"x")
    assert f"beside the images were not read: {name}" in notes(packed(source) if zipped else source)


def test_what_lies_beside_tars_is_named(tmp_path: Path) -> None:
    make_tar(tmp_path / "set" / "cat.tar", {"0.png": PNG})
    lay(tmp_path / "set", "b.zip", "picture", "._cat.tar")
    said = notes(tmp_path / "set")
    assert "files beside the tars were not read: b.zip, picture" in said
    assert "passed over: ._cat.tar" in said


LABEL_FILES = ["metadata.csv", "metadata.jsonl", "labels.json", "Dataset.json", "labels.npy", "labels/0.txt"]


@pytest.mark.parametrize("name", LABEL_FILES)
def test_files_that_may_hold_labels_are_named_where_none_are_read(tmp_path: Path, name: str) -> None:
    source = lay(lay(tmp_path / "set", "images/0.png"), name, content=b"x")
    lay(source, "README.txt", "LICENSE.txt", content=b"x")
    assert f"may hold labels and were not read: {name}; --labels FILE" in notes(source)
    classes = lay(lay(tmp_path / "classes", "a/0.png", "b/0.png"), "list.txt", content=b"x")
    assert notes(classes) == ""


@pytest.mark.parametrize("ending", ["json", "txt", "label", "cls.txt"])
def test_labels_of_other_shards_are_named(tmp_path: Path, ending: str) -> None:
    source = make_tar(tmp_path / "a.tar", {"k.png": PNG, f"k.{ending}": b"1"})
    assert f"may hold labels and were not read: k.{ending}" in notes(source)


def test_a_dataset_json_without_labels_is_named(tmp_path: Path) -> None:
    source = lay(lay(tmp_path / "set", "0.png"), "dataset.json", content=b'{"Labels": []}')
    assert "dataset.json has no 'labels'; these keys were not read: Labels" in notes(source)
    lay(source, "dataset.json", content=b'{"labels": null}')
    assert notes(source) == ""


@pytest.mark.parametrize("ending", ["cls", "CLS"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_labels_beside_images_are_read_everywhere(tmp_path: Path, ending: str, kind: str) -> None:
    source = lay(tmp_path / "set", "k/0.png", "k/1.png")
    for k, word in enumerate(("dog", "cat")):
        lay(source, f"k/{k}.{ending}", content=word.encode())
    if kind == "zip":
        source = packed(source)
    elif kind == "tar":
        files = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*.*")}
        source = make_tar(tmp_path / "set.tar", files)
    assert found(source)[0] == {"k/0.png": "dog", "k/1.png": "cat"}


def test_a_stray_cls_is_no_label(tmp_path: Path) -> None:
    source = lay(lay(tmp_path / "set", "a/0.png", "b/0.png"), "paper.cls", content=b"x")
    assert set(found(source)[0].values()) == {"a", "b"}


def test_parquet_beside_images_is_refused_until_the_format_is_said(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "a/0.png", "b/0.png")
    shard(source / "index.PARQUET", {"label": ["x", "y"]})
    assert "holds both parquet files and 2 image files" in refused(source)
    assert set(found(source, format="folder")[0].values()) == {"a", "b"}
    assert set(found(source, format="parquet")[0].values()) == {"x", "y"}


def test_columns_and_hidden_files_that_are_not_read_are_named(tmp_path: Path) -> None:
    shard(tmp_path / "set" / "A.PARQUET", {"label": [0, 1], "mask": [{"bytes": PNG}] * 2, "id": [5, 6]})
    shard(tmp_path / "set" / ".cache" / "b.parquet", {"label": [0, 1]})
    said = notes(tmp_path / "set")
    assert "columns that were not used: mask, id" in said
    assert "passed over: .cache/b.parquet" in said


def test_a_cut_archive_is_said_to_be_damaged(tmp_path: Path) -> None:
    whole = packed(lay(tmp_path / "set", "0.png", "1.png")).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-30])
    assert "begins as a ZIP, but cannot be read as one" in refused(tmp_path / "cut.zip")
    make_tar(tmp_path / "a.tar.gz", {"0.png": PNG}, "w:gz")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "a.tar.gz").read_bytes()[:20])
    assert "begins as a packed tar" in refused(tmp_path / "cut.tar.gz")


def test_the_reason_for_which_no_image_can_be_read_is_said(tmp_path: Path) -> None:
    from consistune.data.prepare.survey import ImageOptions, choose_transform

    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("0.png", PNG)
    source = open_source(tmp_path / "a.zip", SourceOptions(), tmp_path / "w")
    with pytest.raises(
        UserError, match=r"none of 1 images can be read: 0\.png is encrypted, or compressed in"
    ):
        choose_transform(source, ImageOptions())


@pytest.mark.parametrize("missing", ["data_batch_3", "data_batch_1", "test_batch"])
def test_a_missing_batch_of_cifar_is_named(shared: Path, tmp_path: Path, missing: str) -> None:
    folder = cifar(shared, tmp_path)
    assert notes(folder) == ""
    (folder / missing).rename(folder / f"{missing} (1)")
    said = notes(folder)
    assert f"these batches are missing: {missing}" in said
    assert f"files that were not used: {missing} (1)" in said


def test_batches_that_are_not_cifars_folder_are_named(shared: Path, tmp_path: Path) -> None:
    folder = cifar(shared, tmp_path)
    for source in (packed(folder), folder.parent):
        assert "for the batches batches.meta, data_batch_1" in refused(source, format=None)
    (folder / "batches.meta").unlink()
    assert "for the batches data_batch_1" in refused(folder)


def cifar(shared: Path, root: Path) -> Path:
    shutil.unpack_archive(shared / "data" / "formats" / "cifar-format" / "cifar-10-python.tar.gz", root / "c")
    (folder,) = (root / "c").iterdir()
    for path in folder.iterdir():
        path.touch()  # a ZIP has no time before 1980
    return folder


def test_gaps_in_imagenets_batches_are_named(shared: Path, tmp_path: Path) -> None:
    formats = shared / "data" / "formats" / "imagenet64-format"
    folder = Path(shutil.copytree(formats / "Imagenet64_npz", tmp_path / "set"))
    lay(folder, "map_clsloc.txt", content=b"x")
    assert notes(folder) == ""
    (folder / "train_data_batch_2.npz").rename(folder / "train_data_batch_3.NPZ")
    (folder / "val_data.npz").rename(folder / "val_data (1).npz")
    said = notes(folder)
    assert "these batches are missing: train_data_batch_2, val_data" in said
    assert "files that were not used: val_data (1).npz" in said
