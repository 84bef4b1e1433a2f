"""What is a class, a split, a label, and what is neither: every image and label is accounted for."""

import csv
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistune.data.sources.base import SourceOptions, Unreadable
from consistune.data.sources.detect import open_source
from consistune.data.sources.labels import number_labels
from consistune.data.sources.splits import split_of, splits_among
from consistune.data.sources.tree import Files
from consistune.errors import UserError
from tests.support.makers import class_folders, encoded, pixels
from tests.support.prepared import prepared

PNG = encoded(pixels(1, 4, 4, 3)[0])


def lay(root: Path, *names: str, content: bytes = PNG) -> Path:
    """A file of each name below `root`: an image, or what `content` is."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def packed(root: Path) -> Path:
    """The same files as a ZIP."""
    with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, str(path.relative_to(root)))
    return root.with_suffix(".zip")


def found(source: Path, **options: Any) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """name → class of the training and of the held-out images, and the names that are left out."""
    opened = open_source(source, SourceOptions(**options), source.parent / "work")
    own = opened.own_held_out if opened.own_held_out is not None else np.zeros(len(opened), bool)
    sides: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for k, label in enumerate(opened.labels):
        sides[int(own[k])][opened.name(k)] = opened.class_names[label]
    return *sides, sorted(name for name, _ in opened.skipped)


def refused(source: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_source(source, SourceOptions(**options), source.parent / "work")
    return str(caught.value)


# --- folders that are no classes ---------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_hidden_system_and_empty_folders_are_no_classes(tmp_path: Path, zipped: bool) -> None:
    source = lay(tmp_path / "set", "cat/1.png", "dog/1.png", "dog/._1.png", ".ipynb_checkpoints/1.png")
    lay(source, "__MACOSX/cat/._1.png", "@eaDir/1.png", ".git/x/1.png", "dog/.ipynb_checkpoints/1-copy.png")
    (source / "empty" / "inside").mkdir(parents=True)
    lay(source, "notes/readme.txt", content=b"text")
    opened = open_source(packed(source) if zipped else source, SourceOptions(), tmp_path / "work")
    assert opened.class_names == ("cat", "dog")
    assert [opened.name(k) for k in range(len(opened))] == ["cat/1.png", "dog/1.png"]
    assert any("passed over" in note and "__MACOSX" in note for note in opened.notes)


def test_a_flat_folder_with_a_stray_folder_is_flat(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "1.png", "2.png", ".ipynb_checkpoints/1-checkpoint.png")
    lay(source, "results/log.txt", content=b"text")
    assert found(source) == ({"1.png": "all", "2.png": "all"}, {}, [])
    lay(source, "thumbs/1.png")  # it may be a class: the images beside it are listed
    assert found(source)[2] == ["1.png", "2.png"]


def test_an_unfinished_preparation_in_the_source_is_no_class(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "cat/1.png", "dog/1.png")
    lay(source, "old.part/work/journal", "old.part/work/unpacked/1.png")
    lay(source, "spare.part/1.png")  # a folder of the user's that only has such a name
    assert set(found(source)[0]) == {"cat/1.png", "dog/1.png", "spare.part/1.png"}


# --- splits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ("train test", "train test"),
        ("Train VAL", "train validation"),
        ("training testing", "train test"),
        ("train2017 val2017", "train validation"),
        ("train-set test_images", "train test"),
        ("train valid test", "train validation test"),
        ("seg_train seg_test seg_pred", "train test -"),
        ("train", "train"),
        ("cat dog", ""),
        ("bus car train", ""),  # a vehicle
        ("test cat", ""),
        ("bullet_train steam_train", ""),
        ("trainer tests", ""),
    ],
)
def test_folders_that_are_splits(folders: str, splits: str) -> None:
    expected = dict(zip(folders.split(), splits.split(), strict=False))
    assert splits_among(folders.split()) == {name: s for name, s in expected.items() if s != "-"}


def test_the_hubs_rule_for_names() -> None:
    names = "train-00000-of-00002 my_test_file validation.x Dev eval-1 trainer contest train-test"
    splits = ["train", "test", "validation", "validation", "test", None, None, None]
    assert [split_of(name) for name in names.split()] == splits


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("top", ["", "archive/data/"])
@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("Train", "Val"), ("training", "testing")])
def test_splits_are_no_classes(tmp_path: Path, zipped: bool, top: str, train: str, test: str) -> None:
    flat = lay(tmp_path / "flat", f"{top}{train}/1.png", f"{top}{train}/2.png", f"{top}{test}/1.png")
    tree = lay(tmp_path / "tree", f"{top}{train}/a/1.png", f"{top}{train}/b/1.png", f"{top}{test}/b/2.png")
    lay(tree, f"{top}readme/logo.png", f"{top}cover.png")
    if zipped:
        flat, tree = packed(flat), packed(tree)
    in_flat = {f"{top}{train}/1.png": "all", f"{top}{train}/2.png": "all"}
    assert found(flat) == (in_flat, {f"{top}{test}/1.png": "all"}, [])
    in_tree = {f"{top}{train}/a/1.png": "a", f"{top}{train}/b/1.png": "b"}
    strays = [f"{top}cover.png", f"{top}readme/logo.png"]
    assert found(tree) == (in_tree, {f"{top}{test}/b/2.png": "b"}, strays)


def test_a_training_folder_with_classes_is_a_split_whatever_is_beside_it(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "train/a/1.png", "train/b/1.png", "pictures/cover.png")
    assert found(source) == ({"train/a/1.png": "a", "train/b/1.png": "b"}, {}, ["pictures/cover.png"])
    vehicles = lay(tmp_path / "vehicles", "bus/1.png", "car/1.png", "train/1.png")
    assert set(found(vehicles)[0].values()) == {"bus", "car", "train"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("cat/1.png dog/1.png test/1.png", "test/, which may be a split, beside cat, dog"),
        ("cat/1.png Valid/cat/1.png", "Valid/, which may be a split"),
        ("cat/train/1.png cat/test/1.png dog/train/1.png", "inside the folder cat"),
        ("one/train/a/1.png one/val/a/1.png two/train/a/1.png", "inside the folder one"),
    ],
)
def test_splits_in_other_places_are_refused(tmp_path: Path, names: str, words: str) -> None:
    assert words in refused(lay(tmp_path / "set", *names.split()))


def test_one_held_out_split_is_taken_and_the_others_are_named(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "train/a/1.png", "val/a/1.png", "test/1.png", "test/2.png")
    opened = open_source(source, SourceOptions(), tmp_path / "work")
    assert [(p.split, p.images, p.reason) for p in opened.passed] == [("test", 2, "has no labels")]
    assert found(source)[1] == {"val/a/1.png": "a"}
    lay(source, "val/b/1.png")
    assert "val/b is a class that train/ has not" in refused(source)


PARTS = ["train", "Test", "val", "cat", "dog", "images", "10", "2", "x y"]


@given(
    st.sets(st.lists(st.sampled_from(PARTS), max_size=3).map("/".join), min_size=1, max_size=6), st.booleans()
)
def test_every_image_of_any_tree_is_accounted_for(folders: set[str], table: bool) -> None:
    """Taken, left out by name, or in a split that is left out: each once; or all of them refused."""
    names = sorted({f"{folder}/{k}.png".lstrip("/") for folder in folders for k in range(2)})
    others = ["val/val_annotations.txt"] if table else []
    files = Files(names, others, lambda _: b"0.png\tcat\n", "here")
    try:
        tree = files.tree(SourceOptions())
    except UserError:
        return
    left = [name for name, _ in tree.skipped]
    assert len(set(tree.names)) == len(tree.names)
    assert not set(tree.names) & set(left)
    assert set(tree.names) | set(left) <= set(names)
    assert len(tree.names) + len(left) + sum(split.images for split in tree.passed) == len(names)
    assert set(tree.labels) <= set(range(len(tree.class_names)))
    for name, label in zip(tree.names, tree.labels, strict=True):
        word = tree.class_names[label]
        assert word == "all" or word in name.split("/")[:-1] or (table and word == "cat")


# --- what is taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_images_by_any_name_are_seen(tmp_path: Path, zipped: bool) -> None:
    jpeg = encoded(pixels(1, 4, 4, 3)[0], "JPEG")
    names = ["a.png", "b.PNG", "c", "e.dat"]
    source = lay(tmp_path / "set", *names)
    lay(source, "d.jfif", "f.JPG", "g.jpe", content=jpeg)
    lay(source, "h.heic", content=b"....ftypheic")
    lay(source, "list.txt", "data.bin", content=b"some text or other")
    train, _, left = found(packed(source) if zipped else source)
    assert sorted(train) == sorted([*names, "d.jfif", "f.JPG", "g.jpe"])
    assert left == ["h.heic"]


def test_images_beside_the_folder_of_dataset_json_are_listed(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "train/0.png", "train/1.png", "test/0.png", "extra.png")
    table = {"labels": [["0.png", 0], ["1.png", 1]]}
    lay(source, "train/dataset.json", content=json.dumps(table).encode())
    assert found(packed(source))[2] == ["extra.png", "test/0.png"]
    lay(source, "test/dataset.json", content=json.dumps({"labels": [["0.png", 1]]}).encode())
    assert "prepare one of their folders" in refused(packed(source))


def test_class_folders_in_a_zip_are_those_of_the_folder(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "cat/1.png", "cat/2.png", "dog/1.png")
    assert found(packed(source)) == found(source)
    assert set(found(source)[0].values()) == {"cat", "dog"}


def test_zip_names_are_utf_8_with_and_without_the_flag(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", "café/1.png", "犬/1.png")
    names = {"café/1.png": "café", "犬/1.png": "犬"}
    data = packed(source).read_bytes()
    assert found(packed(source))[0] == names
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # clear the flag
        pieces = data.split(signature)
        data = signature.join([pieces[0], *(p[: at - 4] + b"\0\0" + p[at - 2 :] for p in pieces[1:])])
    (tmp_path / "plain.zip").write_bytes(data)
    assert found(tmp_path / "plain.zip")[0] == names
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        archive.writestr("cat\\1.png", PNG)
        archive.writestr("dog\\1.png", PNG)
    assert found(tmp_path / "windows.zip")[0] == {"cat/1.png": "cat", "dog/1.png": "dog"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_twice_in_a_zip_is_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("1.png", "2.png", "1.png"):
            archive.writestr(name, PNG)
    assert found(tmp_path / "a.zip") == ({"1.png": "all", "2.png": "all"}, {}, ["1.png"])


@pytest.mark.parametrize(
    "name", ["a\nb.png", 'say "x".png', "<script>alert(1)</script>.png", "[red]x[/].png"]
)
def test_names_of_any_kind_are_read(tmp_path: Path, name: str) -> None:
    source = lay(tmp_path / "set", f"a/{name}", "b/1.png")
    meta, train, _ = prepared(source)
    assert (len(train), meta.bad) == (2, [])
    table = tmp_path / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([[f"a/{name}", "x"], ["b/1.png", "y"]])
    meta, train, _ = prepared(source, labels=str(table))
    assert (train.class_names, len(train), meta.bad) == (("x", "y"), 2, [])


# --- labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "values", "names", "note"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b"), ""),
        ([1, 0, 2], [1, 0, 2], ("0", "1", "2"), ""),
        (["0", "2", "10"], [0, 1, 2], ("0", "2", "10"), "0, 2, 10 are classes 0 … 2"),
        ([0, 2, 10], [0, 1, 2], ("0", "2", "10"), "0, 2, 10 are classes 0 … 2"),
        ([2, 1, 1], [1, 0, 0], ("1", "2"), "1, 2 are classes 0 … 1"),
        ([1.0, 0.0], [1, 0], ("0", "1"), "floats"),
        (["1.0", "0.0"], [1, 0], ("0", "1"), "floats"),
        ([True, False], [1, 0], ("False", "True"), ""),
        (["01", "1"], [0, 1], ("01", "1"), ""),
        (["1.5", "2"], [0, 1], ("1.5", "2"), ""),
        (["02", "010", "1"], [1, 2, 0], ("1", "02", "010"), ""),
        (["cat", "2"], [1, 0], ("2", "cat"), "numbers and words are mixed"),
        (["none", "cat"], [1, 0], ("cat", "none"), ""),
    ],
)
def test_labels_are_mapped_and_reported(labels: Any, values: Any, names: Any, note: str) -> None:
    numbered = number_labels(labels, None, "here")
    assert (numbered.values.tolist(), numbered.class_names) == (values, names)
    assert note in " ".join(numbered.notes)
    assert bool(note) == bool(numbered.notes)


@pytest.mark.parametrize(
    "labels",
    [
        ["a", ""], ["a", " "], [0.5], [-1], [None], ["a", 1], [[1]], [float("nan")],
        ["-1", "0"], ["-10", "-2"], ["0", "nan"], ["1", "None"], ["07", "n/a"],
    ],
)  # fmt: skip
def test_other_labels_are_refused(labels: Any) -> None:
    with pytest.raises(UserError):
        number_labels(labels, None, "here")


def test_a_table_of_labels_in_json_and_csv_is_the_same(tmp_path: Path) -> None:
    source = lay(tmp_path / "set", *(f"{k}.png" for k in range(6)))
    words = {f"{k}.png": ("0", "2", "10")[k % 3] for k in range(6)}
    (tmp_path / "a.json").write_text(json.dumps(words))
    (tmp_path / "a.csv").write_text("\n".join(f"{name},{word}" for name, word in words.items()))
    (tmp_path / "stems.csv").write_text("id,class\n" + "\n".join(f"{n[0]},{w}" for n, w in words.items()))
    for table in ("a.json", "a.csv", "stems.csv"):
        train, _, left = found(source, labels=str(tmp_path / table))
        assert (train, left) == (words, [])
    (tmp_path / "gaps.csv").write_text("0.png,cat\n1.png,\n")
    assert "the label of '1.png' is empty" in refused(source, labels=str(tmp_path / "gaps.csv"))
    (tmp_path / "short.csv").write_text("0.png,cat\n1.png,dog\n7.png,dog\n")
    assert found(source, labels=str(tmp_path / "short.csv"))[2] == [
        "2.png",
        "3.png",
        "4.png",
        "5.png",
        "7.png",
    ]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_another_unicode_form_are_the_same(tmp_path: Path, on_disk: str, in_table: str) -> None:
    name = normalize(on_disk, "é.png")  # type: ignore[arg-type]
    source = lay(tmp_path / "set", name, "1.png", "a.jpg", "a.png")
    table = {normalize(in_table, "é.png"): "x", "1": "y", "a": "z"}  # type: ignore[arg-type]
    (tmp_path / "labels.json").write_text(json.dumps(table), encoding="utf-8")
    train, _, left = found(source, labels=str(tmp_path / "labels.json"))
    assert train == {"1.png": "y", name: "x"}
    assert left == ["a", "a.jpg", "a.png"]  # which of the two is meant is not known


def test_folders_that_are_numbers_are_noted(tmp_path: Path) -> None:
    opened = open_source(
        lay(tmp_path / "a", *(f"{k}/0.png" for k in range(12))), SourceOptions(), tmp_path / "w"
    )
    assert opened.class_names[2] == "10"
    assert any("0, 1, 10, 11, 2" in note for note in opened.notes)
    opened = open_source(
        lay(tmp_path / "b", *(f"{k}/0.png" for k in range(3))), SourceOptions(), tmp_path / "w"
    )
    assert opened.notes == []


@pytest.mark.parametrize("images", ["images", "arr_0"])
@pytest.mark.parametrize("labels", ["labels", "label", "arr_1"])
def test_the_arrays_of_an_npz_are_used_or_named(tmp_path: Path, images: str, labels: str) -> None:
    arrays = {images: pixels(4, 6, 6, 3), labels: np.array([0, 1, 1, 0]), "mu": np.zeros(3)}
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    opened = open_source(tmp_path / "a.npz", SourceOptions(), tmp_path / "w")
    assert opened.labels.tolist() == [0, 1, 1, 0]
    assert opened.notes == ["arrays that were not used: mu"]
    np.savez(tmp_path / "a.npz", **arrays | {labels: np.zeros(3, int)})  # type: ignore[arg-type]
    assert "4 images need as many" in refused(tmp_path / "a.npz")


# --- parquet -----------------------------------------------------------------------------------------------


def shard(path: Path, columns: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    count = len(next(iter(columns.values())))
    rows = [{"bytes": encoded(image), "path": None} for image in pixels(count, 4, 4, 3)]
    table = pa.table({**columns, "image": rows})
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


NAMES = {"names": ["z", "a"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("columns", "features", "classes"),
    [
        ({"id": [0, 1, 2], "label": ["cat", "dog", "cat"]}, None, ["cat", "dog", "cat"]),
        ({"image_id": [11, 12, 13], "text": ["x", "x", "x"]}, None, None),
        ({"__index_level_0__": [0, 1, 2]}, None, None),
        ({"target": [0, 1, 1]}, None, None),
        ({"label": [True, False, True]}, None, ["True", "False", "True"]),
        ({"label": [0.0, 1.0, 1.0]}, None, ["0", "1", "1"]),
        ({"id": [5, 6, 7], "target": [0, 1, 1]}, {"target": NAMES}, ["z", "a", "a"]),
        ({"label": [1, 0, 1]}, {"label": NAMES}, ["a", "z", "a"]),
        ({"label": [1, 0, 1]}, {"label": {"names": {"1": "a", "0": "z"}}}, ["a", "z", "a"]),
        ({"other": [1, 0, 1], "label": [0, 0, 1]}, {"other": NAMES, "label": NAMES}, ["z", "z", "a"]),
    ],
)
def test_the_column_of_labels(tmp_path: Path, columns: Any, features: Any, classes: list[str] | None) -> None:
    opened = open_source(shard(tmp_path / "a.parquet", columns, features), SourceOptions(), tmp_path / "w")
    assert opened.labelled == (classes is not None)
    assert [opened.class_names[k] for k in opened.labels] == (classes or ["all"] * 3)
    assert classes or any("--labels COLUMN" in note or "no labels" in note for note in opened.notes)


def test_a_dictionary_of_words_is_a_label(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    words = pa.array(["b", "a", "b"]).dictionary_encode()
    opened = open_source(shard(tmp_path / "a.parquet", {"label": words}), SourceOptions(), tmp_path / "w")
    assert [opened.class_names[k] for k in opened.labels] == ["b", "a", "b"]


@pytest.mark.parametrize(
    ("columns", "features", "asked", "words"),
    [
        ({"label": [[1], [2]]}, None, None, "'label' is list"),
        ({"label": [0.5, 1.0]}, None, None, "labels must be numbers"),
        ({"label": ["a", None]}, None, None, "row 1 has no label"),
        ({"fine": [0, 1], "coarse": [0, 1]}, {"fine": NAMES, "coarse": NAMES}, None, "say --labels COLUMN"),
        ({"label": [0, 2]}, {"label": NAMES}, None, "class_names"),
        ({"id": [0, 1]}, None, "class", "not there; --labels COLUMN names another: id"),
    ],
)
def test_a_column_that_is_no_label_is_refused_by_name(
    tmp_path: Path, columns: Any, features: Any, asked: str | None, words: str
) -> None:
    assert words in refused(shard(tmp_path / "a.parquet", columns, features), labels=asked)


def test_the_splits_of_parquet_shards_are_kept_apart(tmp_path: Path) -> None:
    root = tmp_path / "set"
    shard(root / "data" / "train-00000-of-00001.parquet", {"label": [0, 1, 1]}, {"label": NAMES})
    shard(root / "data" / "validation-00000-of-00001.parquet", {"label": [0, 1]}, {"label": NAMES})
    shard(root / "data" / "test-00000-of-00001.parquet", {"label": [-1, -1]}, {"label": NAMES})
    opened = open_source(root, SourceOptions(), tmp_path / "w")
    assert opened.own_held_out is not None
    assert opened.own_held_out.tolist() == [False] * 3 + [True] * 2
    assert [(p.split, p.images, p.reason) for p in opened.passed] == [("test", 2, "has no labels")]
    shard(root / "data" / "extra.parquet", {"label": [0, 1]}, {"label": NAMES})
    assert "is of no split" in refused(root)
    (root / "data" / "extra.parquet").unlink()
    shard(root / "data" / "train-00001.parquet", {"label": [0]}, {"label": {"names": ["a", "z"]}})
    assert "other columns or class names" in refused(root)
    shutil.move(root / "data", root / "de")
    shard(root / "fr" / "train.parquet", {"label": [0]}, {"label": NAMES})
    assert "several sets: de, fr" in refused(root, format="parquet")


def test_a_large_row_group_is_read_in_pieces_and_once_for_the_sample(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    source = shard(tmp_path / "a.parquet", {"label": [k % 7 for k in range(2100)]})
    opened = open_source(source, SourceOptions(), tmp_path / "w")
    assert opened.pieces() == [(0, 1024), (1024, 2048), (2048, 2100)]
    whole = list(opened.read(opened.task(0, 2100)))
    assert [raw for a, b in opened.pieces() for raw in opened.read(opened.task(a, b))] == whole
    assert list(opened.sample([5, 2099, 1024])) == [whole[5], whole[1024], whole[2099]]


def test_a_damaged_part_of_a_parquet_file_is_listed(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    source = shard(tmp_path / "a.parquet", {"label": [k % 2 for k in range(40)]})
    first = pq.ParquetFile(source).metadata.row_group(0).column(1)
    data = bytearray(source.read_bytes())
    start = first.dictionary_page_offset or first.data_page_offset
    data[start : start + 40] = bytes(40)
    source.write_bytes(data)
    opened = open_source(source, SourceOptions(), tmp_path / "w")
    raws = list(opened.read(opened.task(3, 9)))
    assert len(raws) == 6
    assert all(isinstance(raw, Unreadable) and "damaged" in raw.reason for raw in raws)


@pytest.mark.parametrize("names", [("train_data", "val_data"), ("meta", "train", "test")])
def test_folders_named_like_batches_are_a_tree_of_images(names: tuple[str, ...], tmp_path: Path) -> None:
    source = class_folders(tmp_path / "tree", pixels(2 * len(names), 8, 8, 3), list(names) * 2)
    found = open_source(source, SourceOptions(), tmp_path / "work")
    assert len(found) == 4  # meta is no split
