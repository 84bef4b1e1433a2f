"""Labels that are missing, doubtful, or of several kinds: the message or the note names them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consistune.data.sources.labels import number_labels
from consistune.errors import UserError
from tests.data.test_layouts import found, lay, refused
from tests.data.test_splits import notes
from tests.support.makers import imagenet_batches, pixels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "b", "b", None], "got 'None' (entry 4); all must be numbers, or all words"),
        ([1, 2, "a"], "got 'a' (entry 3)"),
        ([0.0, 1.0, float("nan")], "got 'nan' (entry 3)"),
        ([0.0, 1.5], "got '1.5' (entry 2)"),
        ([0, 1.5], "got '1.5' (entry 2)"),
        ([0, 1.0, 2], "got '1.0' (entry 2)"),
        (["1", "-2", "0"], "got '-2' (entry 2)"),
        ([0, -1], "got '-1' (entry 2)"),
        ([], "holds no labels"),
    ],
)
def test_the_label_that_is_wrong_is_named(labels: list[Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        number_labels(labels, None, "here")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("word", "doubtful"), [("N/A", True), ("None", True), ("nan", True), ("none", False)]
)
def test_a_word_for_a_missing_label_is_noted(word: str, doubtful: bool) -> None:
    numbered = number_labels(["cat", word, "dog"], None, "here")
    assert any(note.endswith(f"missing: {word}") for note in numbered.notes) == doubtful
    assert number_labels(["cat", word], ["cat", word], "here").notes == ()


def test_a_name_of_several_classes_is_noted() -> None:
    assert number_labels([0, 1], ["crane", "crane"], "here").notes == (
        "several classes have the same name: crane",
    )


@pytest.mark.parametrize("text", ['{"0.png": 0, "0.png": 1}', '{"labels": [], "labels": [["0.png", 1]]}'])
def test_a_key_that_is_there_twice_is_refused(tmp_path: Path, text: str) -> None:
    source = lay(tmp_path / "set", "0.png")
    (tmp_path / "labels.json").write_text(text)
    assert "twice" in refused(source, labels=str(tmp_path / "labels.json"))
    (source / "dataset.json").write_text('{"labels": null, "labels": null}')
    assert "names 'labels' twice" in refused(source)


@pytest.mark.parametrize("text", ["", "file,label\n", "\n"])
def test_a_table_of_nothing_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    assert "holds no labels" in refused(lay(tmp_path / "set", "0.png"), labels=str(tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("0.png a 1 2", "line 1 has no tab between file and synset"),
        ("0.png\ta\t1\n0.png\tb\t1\n", "line 2 gives 0.png another synset"),
    ],
)
def test_faulty_annotations_are_refused_by_line(tmp_path: Path, table: str, words: str) -> None:
    source = lay(tmp_path / "set", "train/a/0.png", "train/b/0.png", "val/0.png")
    lay(source, "val/val_annotations.txt", content=table.encode())
    assert words in refused(source)
    lay(source, "val/val_annotations.txt", content=b"0.png\ta\t1\n0.png\ta\t2\n")  # two objects
    assert found(source)[1] == {"val/0.png": "a"}


def test_arrays_that_cannot_be_read_are_refused_with_their_cause(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(pixels(3, 8, 8, 3)))
    assert "in C order, got uint8 in Fortran order" in refused(tmp_path / "a.npz")
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels(3, 8, 8, 3)))
    assert "it says uint8 in Fortran order" in refused(tmp_path / "a.npy")
    np.savez(tmp_path / "b.npz", images=pixels(3, 8, 8, 3), labels=np.eye(3))
    assert "in an array [images], not one-hot" in refused(tmp_path / "b.npz")


def test_labels_beyond_imagenets_are_noted(tmp_path: Path) -> None:
    source = imagenet_batches(tmp_path / "set", pixels(6, 3, 4, 4), [1, 2, 3, 1029, 2, 3], npz=True, val=2)
    assert "the labels go to 1029, beyond ImageNet's 1,000 classes" in notes(source)
