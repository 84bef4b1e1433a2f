"""Each format: what comes out is what was put in, class by class, in the source's order."""

import csv
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consistune.data.images import load_data, read_unprepared
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.sources.base import SourceOptions
from consistune.errors import UserError
from tests.support.makers import (
    cifar_files,
    class_folders,
    edm_zip,
    encoded,
    imagenet_batches,
    pixels,
    python_2,
    tar,
)
from tests.support.prepared import check, prepared

LABELS = [2, 0, 1, 1, 0, 2, 2, 0]


# --- CIFAR -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_cifar_10(tmp_path: Path, packed: bool) -> None:
    images, labels = pixels(23, 3, 32, 32), [(7 * k) % 10 for k in range(23)]
    files = cifar_files(images, labels, batches=3, test=5)
    if packed:
        source = tar(tmp_path / "cifar.tar.gz", files)
    else:
        source = tmp_path / "cifar"
        source.mkdir()
        for name, data in files.items():
            (source / name).write_bytes(data)
    meta, train, held_out = prepared(source)
    check(train, images[:18], labels[:18])
    assert held_out is not None
    check(held_out, images[18:], labels[18:])
    assert train.class_names == tuple(f"name {k}" for k in range(10))
    assert meta.held_out == "the source's own test set"


def test_cifar_100_has_two_kinds_of_labels(tmp_path: Path) -> None:
    images = pixels(6, 3, 32, 32)
    fine, coarse = [5, 3, 0, 1, 1, 4], [1, 0, 0, 1, 1, 0]
    files: dict[str, Any] = {
        "meta": {"fine_label_names": list("abcdef"), "coarse_label_names": ["x", "y"]},
        "train": {"data": images[:4].reshape(4, -1), "fine_labels": fine[:4], "coarse_labels": coarse[:4]},
        "test": {"data": images[4:].reshape(2, -1), "fine_labels": fine[4:], "coarse_labels": coarse[4:]},
    }
    written = {name: b"\x80\x02" + python_2(value) + b"." for name, value in files.items()}
    source = tar(tmp_path / "cifar-100.tar.gz", written, "cifar-100-python")
    _, train, held_out = prepared(source)
    check(train, images[:4], fine[:4])
    _, train, held_out = prepared(source, labels="coarse")
    check(train, images[:4], coarse[:4])
    assert train.class_names == ("x", "y")
    assert held_out is not None
    check(held_out, images[4:], coarse[4:])


def test_the_official_cifar_files_are_read_as_python_reads_them(shared: Path, tmp_path: Path) -> None:
    archive = shared / "data" / "formats" / "cifar-format" / "cifar-10-python.tar.gz"
    shutil.unpack_archive(archive, tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    batches = [
        pickle.loads((folder / f"data_batch_{k}").read_bytes(), encoding="latin1") for k in range(1, 6)
    ]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    prepare(archive, tmp_path / "dest", PrepareOptions())
    check(load_data(str(tmp_path / "dest")).train, images, [k for batch in batches for k in batch["labels"]])


# --- downsampled ImageNet --------------------------------------------------------------------------------


@pytest.mark.parametrize("npz", [True, False])
@pytest.mark.parametrize("side", [8, 64])
def test_imagenet_batches_count_labels_from_1(tmp_path: Path, npz: bool, side: int) -> None:
    images, labels = pixels(11, 3, side, side), [1000, 1, 2, 2, 500, 1, 3, 1000, 1, 7, 7]
    _, train, held_out = prepared(imagenet_batches(tmp_path / "in", images, labels, npz, val=3))
    check(train, images[:8], [k - 1 for k in labels[:8]])
    assert held_out is not None
    check(held_out, images[8:], [k - 1 for k in labels[8:]])
    assert len(train.class_names) == 1000
    assert train.class_names[499] == "500"


def test_the_official_imagenet_batches_agree_in_both_forms(shared: Path, tmp_path: Path) -> None:
    loaded = []
    for form in ("npz", "pickle"):
        source = shared / "data" / "formats" / "imagenet64-format" / f"Imagenet64_{form}"
        prepare(source, tmp_path / form, PrepareOptions())
        loaded.append(load_data(str(tmp_path / form)))
    with np.load(source.with_name("Imagenet64_npz") / "train_data_batch_1.npz") as first:
        planar, labels = first["data"].reshape(-1, 3, 64, 64), first["labels"]
    row = int((loaded[0].train.labels == int(labels[4]) - 1).nonzero()[0])
    assert any(
        torch.equal(loaded[0].train.images[k], torch.from_numpy(planar[4])) for k in range(row, row + 20)
    )
    for a, b in ((loaded[0].train, loaded[1].train), (loaded[0].held_out, loaded[1].held_out)):
        assert a is not None
        assert b is not None
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


# --- folders ---------------------------------------------------------------------------------------------


def test_class_folders_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    images = pixels(8, 6, 6, 3)
    names = ["b", "a", "c"]
    class_folders(tmp_path / "set", images, [names[k] for k in LABELS])
    _, train, held_out = prepared(tmp_path / "set")
    check(train, images.transpose(0, 3, 1, 2), [{"a": 0, "b": 1, "c": 2}[names[k]] for k in LABELS])
    assert train.class_names == ("a", "b", "c")
    assert held_out is None


def test_a_tree_with_train_and_val(tmp_path: Path) -> None:
    images = pixels(8, 6, 6, 3)
    synsets = ["n00000003", "n00000001", "n00000002"]
    words = [synsets[k] for k in LABELS]
    class_folders(tmp_path / "set" / "train", images[:5], words[:5])
    class_folders(tmp_path / "set" / "val", images[5:], words[5:])
    meta, train, held_out = prepared(tmp_path / "set")
    assert train.class_names == tuple(sorted(synsets))
    assert "synsets" in meta.source["kind"]
    planar, labels = images.transpose(0, 3, 1, 2), [sorted(synsets).index(word) for word in words]
    check(train, planar[:5], labels[:5])
    assert held_out is not None
    check(held_out, planar[5:], labels[5:])


@pytest.mark.parametrize("form", ["csv", "csv with a heading", "json", "words", "dataset.json"])
def test_a_flat_folder_with_labels(tmp_path: Path, form: str) -> None:
    images = pixels(8, 6, 6, 3)
    class_folders(tmp_path, images, ["set"] * 8)
    pairs = [(f"{k:04d}.png", label) for k, label in enumerate(LABELS)]
    table = tmp_path / ("labels.json" if form == "json" else "labels.csv")
    match form:
        case "json":
            table.write_text(json.dumps(dict(pairs)))
        case "dataset.json":
            (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": pairs}))
        case _:
            with table.open("w", newline="") as file:
                rows = csv.writer(file)
                if form == "csv with a heading":
                    rows.writerow(("file", "class"))
                rows.writerows((name, "cab"[k] if form == "words" else k) for name, k in pairs)
    _, train, _ = prepared(tmp_path / "set", **({} if form == "dataset.json" else {"labels": str(table)}))
    number = {2: 1, 0: 2, 1: 0} if form == "words" else {0: 0, 1: 1, 2: 2}
    check(train, images.transpose(0, 3, 1, 2), [number[k] for k in LABELS])
    assert train.class_names == (("a", "b", "c") if form == "words" else ("0", "1", "2"))


def test_a_flat_folder_without_labels_is_one_class(tmp_path: Path) -> None:
    images = pixels(4, 6, 6)
    class_folders(tmp_path, images, ["set"] * 4)
    meta, train, _ = prepared(tmp_path / "set")
    check(train, images[:, None], [0] * 4)
    assert not meta.labelled


def test_links_are_not_followed_and_files_outside_class_folders_are_listed(tmp_path: Path) -> None:
    images = pixels(3, 6, 6, 3)
    class_folders(tmp_path / "set", images, ["a", "a", "b"])
    (tmp_path / "secret.png").write_bytes(encoded(images[0]))
    (tmp_path / "set" / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "set" / "c").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "set" / "a" / "pipe.png")
    (tmp_path / "set" / "outside.png").write_bytes(encoded(images[0]))
    meta, train, _ = prepared(tmp_path / "set")
    check(train, images.transpose(0, 3, 1, 2), [0, 0, 1])
    assert {entry["image"]: entry["reason"].split()[1] for entry in meta.bad} == {
        "a/link.png": "a",
        "c": "a",
        "a/pipe.png": "not",
        "outside.png": "outside",
    }


# --- EDM's ZIP -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "some/folder/"])
@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 4)])
def test_edm_zip(tmp_path: Path, shape: tuple[int, ...], prefix: str) -> None:
    images = pixels(8, *shape)
    source = edm_zip(tmp_path / "a.zip", images, LABELS, prefix, class_names=["x", "y", "z", "none"])
    meta, train, held_out = prepared(source)
    check(train, images.reshape(8, 6, 4, -1).transpose(0, 3, 1, 2), LABELS)
    assert train.class_names == ("x", "y", "z", "none")
    assert held_out is None
    assert meta.labelled


@pytest.mark.parametrize("table", [None, {"labels": None}])
def test_edm_zip_without_labels(tmp_path: Path, table: dict[str, None] | None) -> None:
    images = pixels(5, 6, 4, 3)
    source = edm_zip(tmp_path / "a.zip", images, None)
    if table is not None:
        with zipfile.ZipFile(source, "a") as archive:
            archive.writestr("dataset.json", json.dumps(table))
    meta, train, _ = prepared(source)
    check(train, images.transpose(0, 3, 1, 2), [0] * 5)
    assert not meta.labelled


def test_the_shared_zip_reads_unprepared_as_prepared(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "mnist10k.zip"
    loaded = read_unprepared(source)
    assert loaded.images.shape == (9000, 1, 32, 32)
    assert torch.bincount(loaded.labels).tolist() == [905, 1017, 898, 936, 880, 769, 907, 958, 847, 883]
    with zipfile.ZipFile(source) as archive:
        name, label = json.loads(archive.read("dataset.json"))["labels"][1234]
        with archive.open(name) as file:
            pixel = torch.from_numpy(np.array(Image.open(file)))
    assert bool((loaded.images[loaded.labels == label][:, 0] == pixel).all((1, 2)).any())
    prepare(source, tmp_path / "dest", PrepareOptions())
    assert torch.equal(load_data(str(tmp_path / "dest")).train.images, loaded.images)


# --- npz and parquet -------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1"), ("images", None)])
@pytest.mark.parametrize("shape", [(6, 5, 3), (3, 6, 5), (6, 5)])
def test_npz(tmp_path: Path, save: Any, names: tuple[str, str | None], shape: tuple[int, ...]) -> None:
    images = pixels(8, *shape)
    arrays = {names[0]: images} | ({names[1]: np.array(LABELS, np.int32)} if names[1] else {})
    save(tmp_path / "set.npz", **arrays)
    _, train, _ = prepared(tmp_path / "set.npz")
    planar = {3: images, 6: images.reshape(8, 6, 5, -1).transpose(0, 3, 1, 2)}[shape[0]]
    check(train, planar, LABELS if names[1] else [0] * 8)


def test_npy_and_ambiguous_shapes(tmp_path: Path) -> None:
    images = pixels(5, 3, 4, 3)
    np.save(tmp_path / "set.npy", images)
    with pytest.raises(UserError, match="--layout"):
        prepared(tmp_path / "set.npy")
    check(prepared(tmp_path / "set.npy", layout="nchw")[1], images, [0] * 5)
    check(prepared(tmp_path / "set.npy", layout="nhwc")[1], images.transpose(0, 3, 1, 2), [0] * 5)


def test_parquet_shards(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = pixels(8, 6, 4, 3)
    (tmp_path / "set" / "data").mkdir(parents=True)
    info = {"info": {"features": {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}}

    def shard(name: str, a: int, b: int) -> None:
        rows = [{"bytes": encoded(image), "path": None} for image in images[a:b]]
        table = pa.table({"image": rows, "label": LABELS[a:b], "id": list(range(a, b))})
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, tmp_path / "set" / "data" / name, row_group_size=2)

    shard("train-00000-of-00002.parquet", 0, 3)
    shard("train-00001-of-00002.parquet", 3, 6)
    shard("test-00000-of-00001.parquet", 6, 8)
    _, train, held_out = prepared(tmp_path / "set")
    planar = images.transpose(0, 3, 1, 2)
    check(train, planar[:6], LABELS[:6])
    assert train.class_names == ("x", "y", "z")
    assert held_out is not None
    check(held_out, planar[6:], LABELS[6:])


def test_labels_is_a_table_for_zips_too(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", pixels(4, 4, 4), None)
    table = {f"00000/img{k:08d}.png": word for k, word in enumerate(("b", "a", "b"))}
    table["00001/img00000003.png"] = "a"
    (tmp_path / "labels.json").write_text(json.dumps(table))
    prepare(source, tmp_path / "dest", PrepareOptions(SourceOptions(labels=str(tmp_path / "labels.json"))))
    train = load_data(str(tmp_path / "dest")).train
    assert torch.equal(train.images[:, 0], torch.from_numpy(pixels(4, 4, 4)[[1, 3, 0, 2]]))
