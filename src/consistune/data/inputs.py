"""Images from Python: a folder's name, tensors, arrays, a Dataset → a `DataSplit`. Nothing is guessed."""

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistune.core.posterior.mean import quantise
from consistune.data.images import DataSplit, ImageSet, load_data
from consistune.data.prepare.transform import DARK, BadImage, Transform
from consistune.data.sources.labels import brief
from consistune.errors import UserError

CHANNELS = (1, 3)
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "images"), ("label", "labels", "fine_label")
WHERE = "data"


def as_split(
    data: Any,
    labels: Any = None,
    *,
    held_out: Any = None,
    value_range: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    name: str = "images",
) -> DataSplit:
    """Images to train on, and held-out images.

    Args:
        data: a prepared folder or the name of a built-in set; a `DataSplit` or an `ImageSet`; images
            [N, C, H, W], C 1 or 3, as tensor or array, uint8, or floating point with `value_range`; or a
            Dataset with a length whose items are images, pairs (image, label), or dictionaries that have
            "image" and "label", as Hugging Face's datasets give. An image of a Dataset is a PIL image or
            [C, H, W].
        labels: integers [N], from 0 without a gap in 0 … K − 1; only beside tensors and arrays.
        held_out: images of the same kind, in any of these forms but a name; (images, labels) for tensors.
        value_range: (low, high) of floating-point images, (−1, 1) or (0, 1) for example. They are rounded to
            the nearest of 256 levels.

    Raises UserError, which says what was seen, for anything else.
    """
    given = {
        "labels": labels,
        "held_out": held_out,
        "value_range": value_range,
        "class_names": class_names,
    }
    if isinstance(data, str | Path | DataSplit | ImageSet):
        takes = ("held_out",) if isinstance(data, ImageSet) else ()
        extra = [key for key, value in given.items() if value is not None and key not in takes]
        if extra:
            raise UserError(
                f"{', '.join(extra)} would have no effect on a prepared set", WHERE, "leave it out"
            )
    if isinstance(data, DataSplit):
        return data
    if isinstance(data, str | Path):
        return load_data(str(data))
    train = _image_set(data, labels, value_range, class_names, name)
    if held_out is None:
        return DataSplit(train, None)
    images, own = held_out if isinstance(held_out, tuple) else (held_out, None)
    other = _image_set(images, own, value_range, train.class_names, f"{name} held-out", held_out=True)
    if other.image_shape != train.image_shape:
        raise UserError(
            f"images {list(other.image_shape)}, those to train on are {list(train.image_shape)}", "held_out"
        )
    if other.class_names != train.class_names:
        what = f"classes {brief(other.class_names)}, those to train on are {brief(train.class_names)}"
        raise UserError(what, "held_out")
    return DataSplit(train, other)


def check_classes(images: ImageSet, conditional: bool, known: int = 0) -> None:
    """Raises UserError for a single image, and for classes that cannot be learned, where they are to be.

    known: the classes of the model that the training begins with.
    """
    sizes = torch.bincount(images.labels, minlength=len(images.class_names)).tolist()
    if sum(sizes) < 2:
        raise UserError("one image is no set to learn from", WHERE, "give 16 images, better 500 or more")
    if conditional and len(sizes) == 1 and known != 1:
        what = "the images have one class" + (f", the model knows {known}" if known else "")
        raise UserError(what, WHERE, "give labels, as as_split(images, labels), or conditional=False")
    if conditional and 1 in sizes:
        name = images.class_names[sizes.index(1)]
        raise UserError(f"the class {name!r} has 1 image", WHERE, "add images, or give conditional=False")


def _image_set(
    data: Any,
    labels: Any,
    value_range: Any,
    class_names: Sequence[str] | None,
    name: str,
    held_out: bool = False,
) -> ImageSet:
    """held_out: `class_names` are those of the images to train on, and some may be missing here."""
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, np.ndarray):
        data = _tensor(data, "images [N, C, H, W]", WHERE)
    if not isinstance(data, Tensor):
        if labels is not None:
            raise UserError("a Dataset brings its own labels", "labels", "leave labels out")
        data, labels, known = _read_dataset(data, value_range)
        class_names = known if class_names is None else class_names
        value_range = None
    if isinstance(class_names, str):
        raise UserError(f"{class_names!r} is one name", "class_names", 'give a list, such as ["cat", "dog"]')
    names = () if class_names is None else tuple(map(str, class_names))
    images = _pixels(data, value_range)
    high = int(images.max())
    if 0 < high < DARK:
        what = f"the images would be black: their largest value is {high} of 255"
        raise UserError(what, WHERE, "give value_range of floats as it is, or scale the images to 0 … 255")
    if held_out and labels is None and len(names) > 1:
        what = f"the images have no labels, those to train on have {len(names)} classes"
        raise UserError(what, "held_out", "give held_out=(images, labels)")
    found = _labels(labels, len(images), gaps=held_out)
    count = int(found.max()) + 1
    names = names or tuple(map(str, range(count)))
    if count > len(names):
        raise UserError(f"labels go to {count - 1}, class_names has {len(names)} names", "labels")
    return ImageSet.of(name, images, found, names)


def _pixels(images: Tensor, value_range: Any) -> Tensor:
    """uint8 images [N, C, H, W] on the CPU. Raises UserError for another shape, type or range."""
    seen = f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}"
    if images.ndim != 4 or 0 in images.shape:
        raise UserError(f"images [N, C, H, W] are needed, {seen} is given", WHERE)
    if images.shape[1] not in CHANNELS:
        channels_last = images.shape[-1] in CHANNELS
        remedy = "use images.permute(0, 3, 1, 2)" if channels_last else "give 1 or 3 channels"
        raise UserError(f"axis 1 must be 1 or 3 channels, {seen} is given", WHERE, remedy)
    images = images.detach().cpu()
    if images.dtype == torch.uint8:
        if value_range is not None:
            raise UserError("uint8 images have the range 0 … 255", "value_range", "leave it out")
        return images
    if not images.is_floating_point():
        raise UserError(f"uint8 or floating-point images are needed, {seen} is given", WHERE)
    low, high = float(images.min()), float(images.max())
    if value_range is None:
        raise UserError(
            f"floating-point images need their range; theirs are {low:.4g} … {high:.4g}",
            "value_range",
            "give value_range=(-1, 1), (0, 1) or (0, 255)",
        )
    try:
        bottom, top = map(float, () if isinstance(value_range, str) else value_range)
    except (TypeError, ValueError) as error:
        raise UserError("is no pair (low, high)", f"value_range={value_range!r}", "give (0, 1)") from error
    if not (math.isfinite(top - bottom) and bottom < top and bottom <= low and high <= top):  # also NaN
        raise UserError(f"the images have values {low:.4g} … {high:.4g}", f"value_range={value_range}")
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    return quantise((images - bottom) * (2 / (top - bottom)) - 1)


def _tensor(values: Any, needed: str, where: str) -> Tensor:
    """Raises UserError for what is no array of numbers, such as words.

    Arrays that torch does not take as they are (mirrored, of another byte order, read-only) are copied.
    """
    if isinstance(values, np.ndarray):
        mirrored = min(values.strides, default=0) < 0
        if mirrored or not (values.dtype.isnative and values.flags.writeable):
            values = np.array(values, dtype=values.dtype.newbyteorder("="))
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        seen = getattr(values, "dtype", type(values).__name__)
        raise UserError(f"{needed} are needed, {seen} is given", where) from error


def _labels(labels: Any, count: int, gaps: bool = False) -> Tensor:
    """int64 labels [count]; None: all 0. gaps: some classes may be missing. Raises UserError else."""
    if labels is None:
        return torch.zeros(count, dtype=torch.long)
    found = _tensor(labels, f"integers [{count}]", "labels").detach().cpu()
    if found.shape != (count,):
        raise UserError(f"{count} images need labels [{count}], {list(found.shape)} is given", "labels")
    if found.is_floating_point() or found.dtype == torch.bool:
        raise UserError(f"labels must be integers, {found.dtype} is given", "labels")
    present = sorted(set(found.tolist()))
    if present[0] < 0 if gaps else present != list(range(len(present))):
        shown = ", ".join(map(str, present[:5])) + (", …" if len(present) > 5 else "")
        raise UserError(f"labels must be 0 … K − 1 without a gap; there are {shown}", "labels")
    return found.long()


def _read_dataset(data: Any, value_range: Any) -> tuple[Tensor, list[int] | None, Sequence[str] | None]:
    """All items of a Dataset: uint8 images, labels or None, and the classes' names where it knows them."""
    if isinstance(data, Mapping):
        parts = ", ".join(map(str, data))
        raise UserError(f"is a collection of {parts}", WHERE, "give one of them; held_out= takes another")
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError(
            f"{type(data).__name__} is no set of images",
            WHERE,
            "give a folder, a tensor or a Dataset with a length",
        )
    if len(data) == 0:
        raise UserError("there are no images", WHERE)
    if isinstance(data, tuple | list) and len(data) == 2 and getattr(data[0], "ndim", 0) == 4:
        raise UserError("a pair is given", WHERE, "write as_split(images, labels)")
    images: list[Tensor] = []
    labels: list[Any] = []
    floating = False
    for index in range(len(data)):
        image, label = _item(data[index], index)
        floating |= image.is_floating_point()
        pixels = _pixels(image[None], None if image.dtype == torch.uint8 else value_range)[0]
        if images and pixels.shape != images[0].shape:
            raise UserError(
                f"item {index} is {list(pixels.shape)}, the first is {list(images[0].shape)}",
                WHERE,
                "consistune data prepare crops and resizes",
            )
        images.append(pixels)
        labels.append(None if label is None else _label(label, index))
    if value_range is not None and not floating:
        raise UserError("uint8 images have the range 0 … 255", "value_range", "leave it out")
    unlabelled = [index for index, label in enumerate(labels) if label is None]
    if unlabelled and len(unlabelled) < len(labels):
        raise UserError(f"item {unlabelled[0]} has no label, others have one", WHERE)
    if unlabelled and isinstance(data[0], Mapping) and data[0].keys() - {*IMAGE_KEYS, *LABEL_KEYS}:
        others = ", ".join(sorted(str(key) for key in data[0].keys() - {*IMAGE_KEYS, *LABEL_KEYS}))
        warnings.warn(f"the images have no 'label'; not used: {others}", stacklevel=4)
    return torch.stack(images), None if unlabelled else labels, _names(data)


def _label(label: Any, index: int) -> int:
    """The integer that an item has as its label."""
    try:
        return operator.index(label)
    except (TypeError, ValueError) as error:
        raise UserError(f"item {index} has the label {label!r}", WHERE, "give integers from 0 on") from error


def _names(data: Any) -> Sequence[str] | None:
    """The classes' names: torchvision's `classes`, or those of a ClassLabel of Hugging Face's datasets."""
    features = getattr(data, "features", None)
    if isinstance(features, Mapping):
        label = next((features[key] for key in LABEL_KEYS if key in features), None)
        return getattr(label, "names", None)
    return getattr(data, "classes", None)


def _eight_bits(image: Any, index: int) -> Any:
    """A PIL image of any mode as `data prepare` has it: 8 bits, white behind what is transparent."""
    grey = image.mode in ("L", "F") or image.mode.startswith("I")
    try:
        return Transform(mode="grey" if grey else "rgb", size=None).convert(image)
    except BadImage as error:
        raise UserError(f"item {index} {error}", WHERE, "give 8-bit images") from error


def _item(item: Any, index: int) -> tuple[Tensor, Any]:
    """Image [C, H, W] and label (None: none) of one item of a Dataset."""
    label = None
    if isinstance(item, Mapping):
        key = next((key for key in IMAGE_KEYS if key in item), None)
        if key is None:
            raise UserError(f"item {index} has {sorted(map(str, item))}, but no 'image'", WHERE)
        label = next((item[name] for name in LABEL_KEYS if name in item), None)
        item = item[key]
    elif isinstance(item, tuple | list):
        if len(item) not in (1, 2):
            raise UserError(f"item {index} has {len(item)} parts", WHERE, "give (image, label)")
        item, label = item[0], item[1] if len(item) == 2 else None
    if isinstance(item, Tensor):
        return item, label
    if hasattr(item, "convert"):  # a PIL image
        pixels = np.array(_eight_bits(item, index))
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1), label
    array = np.asarray(item)
    if array.ndim not in (2, 3) or array.dtype == object:
        raise UserError(f"item {index} is {type(item).__name__}, not an image", WHERE)
    return _tensor(array if array.ndim == 3 else array[None], f"numbers of item {index}", WHERE), label
