"""Images from Python: each form gives the same set, and nothing is taken that was not understood."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from consistune.data.images import DataSplit
from consistune.data.inputs import as_split
from consistune.errors import UserError

COLOUR = torch.randint(0, 256, (6, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
GREY = COLOUR[:, :1]
LABELS = torch.tensor([1, 0, 2, 1, 0, 2])
ORDER = torch.tensor([1, 4, 0, 3, 2, 5])


class Items:
    """A Dataset: a length and items."""

    def __init__(self, items: list[Any], classes: Any = None) -> None:
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def pil(image: Tensor) -> Image.Image:
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


@pytest.mark.parametrize("images", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("form", ["tensor", "array", "minus-one", "zero-one", "pairs", "pil", "hub"])
def test_every_form_gives_the_same_set(form: str, images: Tensor) -> None:
    pairs = list(zip(images, LABELS.tolist(), strict=True))
    split: DataSplit = {
        "tensor": lambda: as_split(images, LABELS),
        "array": lambda: as_split(images.numpy(), LABELS.numpy()),
        "minus-one": lambda: as_split(images / 127.5 - 1, LABELS, value_range=(-1, 1)),
        "zero-one": lambda: as_split(images.double() / 255, LABELS.tolist(), value_range=(0, 1)),
        "pairs": lambda: as_split(Items(pairs)),
        "pil": lambda: as_split(Items([(pil(image), label) for image, label in pairs])),
        "hub": lambda: as_split(Items([{"image": pil(image), "label": label} for image, label in pairs])),
    }[form]()
    assert torch.equal(split.train.images, images[ORDER])
    assert torch.equal(split.train.labels, LABELS[ORDER])
    assert split.held_out is None


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "form",
    [
        lambda a: a[::-1].copy()[::-1],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        read_only,
        lambda a: np.broadcast_to(a, a.shape),
    ],
    ids=["mirrored", "columns", "big-endian", "read-only", "broadcast"],
)
def test_arrays_that_torch_does_not_take_are_taken(form: Callable[[np.ndarray], np.ndarray]) -> None:
    images, labels = COLOUR.numpy().astype("float32"), LABELS.numpy()
    whole = as_split(form(images), form(labels), value_range=(0, 255))
    items = Items([(form(image), label) for image, label in zip(images, labels, strict=True)])
    for split in (whole, as_split(items, value_range=(0, 255)), as_split(form(COLOUR.numpy()), form(labels))):
        assert torch.equal(split.train.images, COLOUR[ORDER])
        assert torch.equal(split.train.labels, LABELS[ORDER])


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P"])
def test_a_picture_of_any_mode_is_as_data_prepare_has_it(mode: str) -> None:
    """16 bits and floats are scaled to 8; what is transparent is white."""
    grey = torch.arange(64, dtype=torch.uint8).view(8, 8) * 4
    if mode in ("I;16", "I"):
        picture = Image.fromarray(grey.to(torch.int32).mul(257).numpy().astype("uint16")).convert(mode)
        expected = grey[None]
    elif mode == "F":
        picture, expected = Image.fromarray(grey.numpy().astype("float32") / 255, "F"), grey[None]
    else:
        picture = Image.fromarray(grey.numpy(), "L").convert("RGBA")
        picture.putalpha(0)
        picture, expected = picture.convert(mode), torch.full((3, 8, 8), 255, dtype=torch.uint8)
    found = as_split(Items([picture] * 3)).train.images
    assert torch.equal(found, expected.expand(3, *expected.shape))


def test_what_would_have_no_effect_on_pictures_is_refused() -> None:
    with pytest.raises(UserError, match=r"value_range: .*uint8 images"):
        as_split(Items(list(COLOUR)), value_range=(0, 1))
    with pytest.raises(UserError, match="value_range"):
        as_split(COLOUR / 255, value_range=(0, float("inf")))
    with pytest.raises(UserError, match="class_names: 'cat' is one name"):
        as_split(COLOUR, class_names="cat")


def test_held_out_images_need_not_have_every_class() -> None:
    split = as_split(COLOUR, LABELS, held_out=(COLOUR[:2], [1, 1]))
    assert split.held_out.labels.tolist() == [1, 1]
    assert split.held_out.class_names == split.train.class_names
    for wrong, said in (([-1, 1], "without a gap"), ([1, 99], "labels go to 99")):
        with pytest.raises(UserError, match=said):
            as_split(COLOUR, LABELS, held_out=(COLOUR[:2], wrong))


@pytest.mark.parametrize("names", [[1, 2, 3], np.array([1, 2, 3]), ("1", "2", "3")])
def test_class_names_of_any_kind_are_words(names: Any) -> None:
    assert as_split(COLOUR, LABELS, class_names=names).train.class_names == ("1", "2", "3")
    items = list(zip(COLOUR, LABELS.tolist(), strict=True))
    assert as_split(Items(items, classes=names)).train.class_names == ("1", "2", "3")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_to_the_nearest_level(dtype: torch.dtype) -> None:
    values = (COLOUR / 255).to(dtype)
    found = as_split(values, value_range=(0, 1)).train.images
    assert torch.equal(found, as_split(values.float(), value_range=(0, 1)).train.images)


def test_the_keys_of_a_dataset_that_hold_no_known_label_are_named() -> None:
    with pytest.warns(UserWarning, match="no 'label'; not used: coarse_label, target"):
        as_split(Items([{"img": image, "target": 1, "coarse_label": 2} for image in COLOUR]))


def test_no_labels_are_one_class() -> None:
    split = as_split(Items(list(COLOUR)))
    assert split.train.class_names == ("0",)
    assert torch.equal(split.train.images, COLOUR)


def test_names_and_held_out_images() -> None:
    split = as_split(
        Items(list(zip(COLOUR, LABELS, strict=True)), ["a", "b", "c"]),
        held_out=(GREY.expand(6, 3, 4, 5), LABELS),
    )
    assert split.train.class_names == ("a", "b", "c")
    assert split.held_out is not None
    assert len(split.held_out) == 6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: as_split(COLOUR.float()), "need their range; theirs are"),
        (lambda: as_split(COLOUR.float(), value_range=(0, 1)), "the images have values"),
        (lambda: as_split(torch.full((2, 1, 4, 4), float("nan")), value_range=(-1, 1)), "nan"),
        (lambda: as_split(COLOUR, value_range=(0, 255)), "leave it out"),
        (lambda: as_split(COLOUR.permute(0, 2, 3, 1)), r"permute\(0, 3, 1, 2\)"),
        (lambda: as_split(COLOUR[0]), r"uint8 \[3, 4, 5\] is given"),
        (lambda: as_split(COLOUR.long()), "uint8 or floating-point"),
        (lambda: as_split(COLOUR.expand(6, 3, 4, 5).repeat(1, 2, 1, 1)), "1 or 3 channels"),
        (lambda: as_split(COLOUR[:0]), "are needed"),
        (lambda: as_split(COLOUR, LABELS[:5]), r"6 images need labels \[6\]"),
        (lambda: as_split(COLOUR, LABELS + 1), "there are 1, 2, 3"),
        (lambda: as_split(COLOUR, LABELS * 2), "without a gap"),
        (lambda: as_split(COLOUR, LABELS - 1), "there are -1, 0, 1"),
        (lambda: as_split(COLOUR, LABELS.float()), "must be integers"),
        (lambda: as_split(COLOUR, LABELS, class_names=["a"]), "class_names has 1 names"),
        (lambda: as_split(Items(list(COLOUR)), LABELS), "brings its own labels"),
        (lambda: as_split(COLOUR, ["cat", "dog"] * 3), r"labels: integers \[6\] are needed, list is given"),
        (lambda: as_split(np.array([None, 1])), "are needed, object is given"),
        (lambda: as_split(COLOUR.float(), value_range=1), "is no pair"),
        (lambda: as_split(COLOUR.float(), value_range=(0, 1, 2)), "is no pair"),
        (lambda: as_split(Items([(COLOUR[0], "cat")])), "item 0 has the label 'cat'"),
        (lambda: as_split(Items([(COLOUR[0], 0.7)])), "item 0 has the label 0.7"),
        (lambda: as_split(Items([(COLOUR[0], [1, 0])])), r"item 0 has the label \[1, 0\]"),
        (lambda: as_split({"train": Items([]), "test": Items([])}), "is a collection of train, test"),
        (lambda: as_split(Items([])), "no images"),
        (lambda: as_split(Items([COLOUR[0], COLOUR[0][:, :2]])), "item 1 is"),
        (lambda: as_split(Items([(COLOUR[0], 1), (COLOUR[1], None)])), "item 1 has no label"),
        (lambda: as_split(Items([{"picture": 1}])), "no 'image'"),
        (lambda: as_split(Items(["a.png"])), "item 0 is str, not an image"),
        (lambda: as_split(Items([np.array([["a", "b"]])])), "numbers of item 0 are needed, <U1 is given"),
        (lambda: as_split(Items([np.zeros((3, 4, 5), "M8[s]")])), "numbers of item 0 are needed, datetime"),
        (lambda: as_split(Items([np.zeros((4, 5, 3), np.uint8)])), "permute"),
        (lambda: as_split((COLOUR, LABELS)), r"data: a pair is given; write as_split\(images, labels\)"),
        (lambda: as_split(iter([COLOUR[0]])), "is no set of images; .* a Dataset with a length"),
        (lambda: as_split(COLOUR / 255, value_range="01"), "is no pair"),
        (lambda: as_split(COLOUR / 255, value_range=(0, 255)), "would be black: .* is 1 of 255"),
        (lambda: as_split(COLOUR // 255), "would be black"),
        (lambda: as_split(COLOUR, LABELS, held_out=COLOUR), "the images have no labels, .* 3 classes"),
        (lambda: as_split(3), "int is no set of images"),
        (lambda: as_split("digits", value_range=(0, 1)), "would have no effect"),
        (lambda: as_split(COLOUR, held_out=GREY), r"images \[1, 4, 5\]"),
    ],
)
def test_what_is_not_understood_is_refused(make: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_set_in_memory_takes_held_out_images_alone() -> None:
    known = as_split(COLOUR, LABELS).train
    assert as_split(known, held_out=known).held_out is known
    for extra in ({"labels": LABELS}, {"class_names": ["a", "b"]}, {"value_range": (0, 1)}):
        with pytest.raises(UserError, match="would have no effect on a prepared set"):
            as_split(known, **extra)
    other = as_split(COLOUR, LABELS, class_names=["x", *known.class_names[1:]]).train
    with pytest.raises(UserError, match="held_out: classes x"):
        as_split(known, held_out=other)


def test_plain_pictures_are_turned_and_put_on_white_too() -> None:
    grey = torch.arange(64, dtype=torch.uint8).view(8, 8)
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.fromarray(grey.numpy(), "L").save(buffer, "PNG", exif=exif)
    turned = as_split(Items([Image.open(buffer)] * 2)).train.images
    assert torch.equal(turned[0, 0], grey.flip(0, 1))
    black = Image.new("RGB", (8, 8))
    black.info["transparency"] = (0, 0, 0)
    assert bool((as_split(Items([black] * 2)).train.images == 255).all())
