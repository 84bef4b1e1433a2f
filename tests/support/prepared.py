"""Prepared sets for tests: a set with bad images, and what is read back."""

from pathlib import Path
from typing import Any

import torch

from consistune.data.images import ImageSet, load_data
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.split import Split
from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepared import Meta
from consistune.data.sources.base import SourceOptions
from tests.support.makers import Pixels, class_folders, pixels

OPTIONS = PrepareOptions(images=ImageOptions(size=8), split=Split(0.2, seed=3))


def mixed_folder(root: Path, count: int = 40, bad: tuple[int, ...] = (3, 17, 18)) -> Path:
    """Images of many sizes in five classes, some of them bad."""
    images: list[Any] = [pixels(1, 9 + k % 5, 8 + k % 7, 3, seed=k)[0] for k in range(count)]
    for k in bad:
        images[k] = b"not an image"
    return class_folders(root, images, [f"class {k % 5}" for k in range(count)])


def prepared(source: Path, **options: Any) -> tuple[Meta, ImageSet, ImageSet | None]:
    dest = source.parent / f"prepared-{len(list(source.parent.iterdir()))}"
    meta = prepare(source, dest, PrepareOptions(SourceOptions(**options)))
    data = load_data(str(dest))
    return meta, data.train, data.held_out


def check(loaded: ImageSet, images: Pixels, labels: list[int]) -> None:
    """images [n, C, H, W] in the source's order come back grouped by class, in that order within a class."""
    order = sorted(range(len(labels)), key=lambda i: labels[i])
    assert loaded.labels.tolist() == sorted(labels)
    assert torch.equal(loaded.images, torch.from_numpy(images[order]))
