"""A set of images in memory, grouped by class, and the embedded one: scikit-learn's digits."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sct.core.posterior import Reference, dequantise
from sct.core.types import Batch
from sct.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """uint8 images [n, C, H, W] with labels [n]; the images of a class stand in consecutive rows.

    Attributes:
        class_names: one name a label.
    """

    name: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> "ImageSet":
        """Group the rows by label (stable)."""
        order = torch.argsort(labels, stable=True)
        return cls(name, images[order].contiguous(), labels[order].contiguous(), class_names)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width

    def batch(self, rows: Tensor, conditional: bool, device: torch.device | str = "cpu") -> Batch:
        """The training batch of these rows [B]: images in [−1, 1], their labels, their place in the set."""
        labels = self.labels[rows].to(device) if conditional else None
        return Batch(dequantise(self.images[rows].to(device)), labels, rows.to(device))

    def reference(self, by_class: bool, device: torch.device | str = "cpu") -> Reference:
        """The set as references for the score identity: grouped by class, or one group."""
        images = self.images.to(device)
        if not by_class:
            return Reference.whole(images)
        sizes = torch.bincount(self.labels, minlength=len(self.class_names))
        return Reference(images, (0, *torch.cumsum(sizes, 0).tolist()))


@dataclass(frozen=True)
class DataSplit:
    """Images to train on, and images of the same kind that training never sees."""

    train: ImageSet
    held_out: ImageSet


HELD_OUT_DIGITS = 297


@lru_cache(maxsize=1)
def digits() -> DataSplit:
    """scikit-learn's handwritten digits: 1500 training and 297 held-out images, 1×8×8, ten classes.

    The grey levels 0 … 16 become 0 … 255. The split is random, fixed, and keeps the classes' shares.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = train_test_split(
        range(len(labels)), test_size=HELD_OUT_DIGITS, random_state=0, stratify=bunch.target
    )
    names = tuple(str(name) for name in bunch.target_names)
    return DataSplit(
        ImageSet.of("digits", pixels[train], labels[train], names),
        ImageSet.of("digits held-out", pixels[test], labels[test], names),
    )


SETS = {"digits": digits}


def load_data(name: str) -> DataSplit:
    """The data set of that name. Raises UserError for an unknown one."""
    if name not in SETS:
        raise UserError(f"unknown data set {name!r}", "data", f"known are: {', '.join(sorted(SETS))}")
    return SETS[name]()
