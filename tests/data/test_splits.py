"""Names of splits in all the ways in which they are written, and folders between a split and its classes."""

from pathlib import Path

import pytest

from consistune.data.sources.base import SourceOptions
from consistune.data.sources.detect import open_source
from consistune.data.sources.splits import split_of, splits_among
from tests.data.test_archives import make_tar
from tests.data.test_layouts import PNG, found, lay, refused


def notes(source: Path) -> str:
    return "\n".join(open_source(source, SourceOptions(), source.parent / "work").notes)


@pytest.mark.parametrize(
    "pair",
    [
        *("trainset testset", "traindata testdata", "TrainImages TestImages", "imagestrain imagestest"),
        *(
            "trn tst",
            "train validate",
            "train holdout",
            "training-set held-out",
            "train t10k",
            "trainA testB",
        ),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_splits_are_known_by_their_usual_names(tmp_path: Path, pair: str, flat: bool) -> None:
    train, test = pair.split()
    below, names = ("", ["all"] * 2) if flat else ("{}/", ["a", "b"])
    source = lay(tmp_path / "set", *(f"{train}/{below.format(k)}{k}.png" for k in "ab"))
    lay(source, f"{test}/{below.format('a')}a.png")
    taken, held, _ = found(source)
    assert (list(taken.values()), list(held.values())) == (names, names[:1])


def test_words_that_only_contain_a_splits_are_none() -> None:
    assert splits_among(["vitaminA", "trainer", "tr", "te"]) == {}
    assert [split_of(name) for name in ("trainsetter", "protest", "A", "testimony")] == [None] * 4


@pytest.mark.parametrize("beside", ["trainset cat", "train unlabeled", "train query gallery", "Training cat"])
def test_a_flat_training_folder_beside_others_is_refused(tmp_path: Path, beside: str) -> None:
    source = lay(tmp_path / "set", *(f"{folder}/0.png" for folder in beside.split()))
    assert f"{beside.split()[0]}/, which may be a split" in refused(source)


def test_a_vehicle_is_a_class_with_a_note(tmp_path: Path) -> None:
    assert "train/ is a class" in notes(lay(tmp_path / "set", "bus/1.png", "car/1.png", "train/1.png"))


@pytest.mark.parametrize("folder", ["images", "data"])
def test_class_folders_in_a_folder_for_images_are_classes(tmp_path: Path, folder: str) -> None:
    names = [f"{split}/{folder}/{word}/0.png" for split in ("train", "val") for word in ("cat", "dog")]
    taken, held, _ = found(lay(tmp_path / "set", *names))
    assert list(taken.values()) == list(held.values()) == ["cat", "dog"]


@pytest.mark.parametrize("top", ["t", "{}"])
def test_a_folder_that_holds_all_of_a_split_is_entered(tmp_path: Path, top: str) -> None:
    for split in ("train", "test"):
        inside = top.format(split)
        make_tar(
            tmp_path / "set" / f"{split}.tar", {f"{inside}/{word}/0.png": PNG for word in ("cat", "dog")}
        )
    taken, held, _ = found(tmp_path / "set")
    assert list(taken.values()) == list(held.values()) == ["cat", "dog"]


def test_what_is_not_read_of_the_folders_is_noted(tmp_path: Path) -> None:
    assert "below the classes are not read: pack1/cat, pack2/bird" in notes(
        lay(tmp_path / "packs", "pack1/cat/0.png", "pack2/bird/0.png", "pack2/images/0.png")
    )
    assert "the classes in test were not read: a, b" in notes(
        lay(tmp_path / "flat", "train/0.png", "test/a/0.png", "test/b/0.png")
    )


@pytest.mark.parametrize(
    "folders", ["-1 0 1", "1 2 cat", "class1 class10 class2", "0_zero 10_ten 1_one 2_two"]
)
def test_numbers_in_names_that_are_not_the_classes_are_noted(tmp_path: Path, folders: str) -> None:
    source = lay(tmp_path / "set", *(f"{folder}/0.png" for folder in folders.split()))
    assert f"are the folders {folders.replace(' ', ', ')}, in this order" in notes(source)


@pytest.mark.parametrize("folders", ["0 1 2", "n01440764 n01443537", "a2 b1", "class1 class2"])
def test_numbers_in_the_classes_order_need_no_note(tmp_path: Path, folders: str) -> None:
    assert notes(lay(tmp_path / "set", *(f"{folder}/0.png" for folder in folders.split()))) == ""
