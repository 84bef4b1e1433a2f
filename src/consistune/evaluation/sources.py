"""Where the measured samples come from: a model, which draws an image for each seed, or a file."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from consistune.core.posterior.mean import restored
from consistune.core.rng import mix_seed
from consistune.core.sampling import Sampler
from consistune.core.types import Denoiser
from consistune.data.images import DataSplit
from consistune.data.sources.files import Listing
from consistune.data.sources.labels import brief
from consistune.errors import UserError
from consistune.evaluation.request import LabelRule, Request
from consistune.evaluation.settings import check_guidance, chosen_sampler
from consistune.metrics.statistics import read_samples, unread_arrays
from consistune.models import MODEL_NAMES, built_in, default_sampler, load, picture_shape, sample
from consistune.nn.autoencoder.space import LatentSpace, from_model, open_space
from consistune.nn.precond import Preconditioned
from consistune.system.files import file_digest
from consistune.system.progress import Screen

LABEL_STREAM = 7
"""The labels of a seed come from another random stream than its noise."""


@dataclass(frozen=True)
class ModelSource:
    """Seeds → uint8 images [n, C, H, W] and their labels [n]: a function of each seed alone.

    Attributes:
        labels: of the training images; None: not known.
        label_rule: "data": the label of a random training image (ECT's protocol); "uniform": each class with
            the same probability (EDM's); "balanced": the seed modulo the number of classes.
        worse, omega: guidance by a worse model.
    """

    model: Preconditioned
    sampler: Sampler
    labels: Tensor | None = None
    label_rule: LabelRule = "data"
    worse: Denoiser | None = None
    omega: float = 1.0
    batch: int = 256

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        labels = self.labels_of(seeds)
        images = sample(
            self.model,
            seeds,
            condition=labels,
            sampler=self.sampler,
            guidance=self.omega,
            worse=self.worse,
            batch=self.batch,
        )
        return images, labels

    def labels_of(self, seeds: Sequence[int]) -> Tensor | None:
        """The label [n] of each seed; None where the model takes no labels."""
        classes = self.model.num_classes
        if classes == 0:
            return None
        if self.label_rule == "balanced":
            return torch.tensor([seed % classes for seed in seeds])
        numbers = [mix_seed(seed, LABEL_STREAM) for seed in seeds]
        if self.label_rule == "uniform":
            return torch.tensor([number % classes for number in numbers])
        if self.labels is None:
            what = "the labels of the training images are not known"
            raise UserError(what, "--labels data", "give --data, or --labels uniform")
        return self.labels[torch.tensor([number % len(self.labels) for number in numbers])]

    def in_steps(self, steps: int | None, request: Request) -> "ModelSource":
        """The same in a number of steps. Raises UserError for a number that the model cannot take."""
        return replace(self, sampler=chosen_sampler(self.model, steps, request.mid_t, request.eta))

    @property
    def evaluations(self) -> int:
        """Network evaluations for an image."""
        return self.sampler.evaluations

    @property
    def settings(self) -> dict[str, Any]:
        """The sampler's settings, for results.json."""
        return {
            "kind": type(self.sampler).__name__,
            **asdict(self.sampler),  # type: ignore[call-overload]
            "evaluations": self.evaluations,
            "omega": self.omega,
            "labels": self.label_rule if self.labelled else None,
        }

    @property
    def labelled(self) -> bool:
        """The model takes labels."""
        return self.model.num_classes > 0

    @property
    def classes(self) -> int:
        """Each label is below."""
        return self.model.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return picture_shape(self.model)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' names, shapes and values: the same in every file format."""
        sha = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


@dataclass(frozen=True)
class FileSource:
    """Row numbers, in the place of seeds → the images of a file or a folder, and their labels.

    Attributes:
        digest: SHA-256 of the file, or of the folder's files one after the other.
    """

    images: Tensor
    labels: Tensor | None
    digest: str

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        rows = torch.tensor(list(seeds))
        return self.images[rows].contiguous(), None if self.labels is None else self.labels[rows]

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def classes(self) -> int:
        """Each label is below."""
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.images.shape
        return channels, height, width


@dataclass(frozen=True)
class DecodedSource:
    """Seeds → training pictures as they come back from their latents, and their labels.

    A seed stands for a picture, each picture comes once in a round.
    """

    space: LatentSpace
    data: DataSplit

    def __call__(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        pictures, record = self.data.to_look_at.train, self.data.train.latents
        order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
        rows = order[torch.tensor(list(seeds)) % len(pictures)]
        if record is None:
            record = self.space.record
            stored = self.space.stored(self.space.encode(pictures.images[rows]))
        else:
            stored = self.data.train.images[rows * (2 if record.mirrored else 1)]
        decoded = LatentSpace(record, self.space.autoencoder).decode(restored(stored, record.scale))
        return decoded, pictures.labels[rows] if len(pictures.class_names) > 1 else None

    @property
    def settings(self) -> dict[str, Any]:
        """For results.json."""
        record = self.space.record
        return {"kind": "autoencoder", "autoencoder": record.autoencoder, "sha256": record.identity}


def decoded_source(model: Preconditioned, data: DataSplit | None) -> DecodedSource | None:
    """The floor of a model of latents; None for a model of pictures, or without data.

    Raises UserError where the data are latents of another autoencoder, or for pictures of another shape.
    """
    known = from_model(model)
    if known is None or data is None:
        return None
    if data.train.latents is not None:
        data.train.latents.check_same_autoencoder(known, f"--data {data.train.name}")
    return DecodedSource(open_space(known, next(model.parameters()).device), data)


def model_source(request: Request, labels: Tensor | None) -> ModelSource:
    """The model of a request, in its own number of steps; `labels` of the training images."""
    model = load(request.model, request.device)
    worse = None if request.worse is None else load(request.worse, request.device)
    check_guidance(model, worse, request.omega, "--omega", searched=request.search == "omega")
    if request.label_rule is not None and not model.num_classes:
        raise UserError("has no effect: the model takes no labels", "--labels", "leave it out")
    sampler = default_sampler(model, None if model.card.objective else 1)  # each row has its own
    return ModelSource(
        model, sampler, labels, request.label_rule or "data", worse, request.omega, request.batch
    )


def check_labels(source: ModelSource, classes: int) -> None:
    """Raises UserError where the data's labels are to be drawn, and are of other classes than the model's."""
    own = source.model.num_classes
    if own and source.label_rule == "data" and own != classes:
        what = f"the model has {own} classes, the data {classes}"
        raise UserError(what, "--data", "give the data that it learned, or --labels uniform")


def is_samples(path: Path) -> bool:
    """Whether a path names samples: a .npz file, or a folder with images and no model."""
    if not path.is_dir():
        return path.suffix.lower() == ".npz"
    if any((path / name).exists() for name in MODEL_NAMES):
        return False
    images = Listing.of(path, links=True).images
    hides = str(path) in built_in() and all("/" in name for name in images)  # a built-in model's name
    return path.suffix.lower() == ".npz" or (bool(images) and not hides)


def check_folder_of_samples(folder: Path, listing: Listing) -> list[str]:
    """Notes on what `read_pngs` passes over. Raises UserError where it would pass over images."""
    others = sorted({*listing.images, *(name for name, _ in listing.skipped)}.difference(_pngs(listing)))
    if others:
        what = f"has other images than PNG files in the folder itself ({len(others)}): {brief(others, 4)}"
        raise UserError(what, str(folder), "give a folder of PNG files, all of them samples, or a .npz")
    left = {"hidden and system entries": listing.passed, "files that are no images": listing.others}
    return [f"{kind} were passed over: {brief(sorted(names), 4)}" for kind, names in left.items() if names]


def _pngs(listing: Listing) -> list[str]:
    return [name for name in listing.images if "/" not in name and name.lower().endswith(".png")]


def read_pngs(folder: Path, listing: Listing | None = None) -> tuple[Tensor, str]:
    """The PNG files of a folder in the order of their names, uint8 [n, C, H, W], and the SHA-256 of all.

    listing: of the folder, where it is known already.
    Raises UserError where there are none, and where one cannot be read, or has another size or mode than the
    first.
    """
    listing = listing or Listing.of(folder, links=True)
    sha, images = hashlib.sha256(), list[Tensor]()
    for path in (folder / name for name in _pngs(listing)):
        data = path.read_bytes()
        sha.update(data)
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:  # Pillow runs a program for EPS
                mode, array = picture.mode, np.array(picture)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "it is no PNG" if isinstance(error, UnidentifiedImageError) else error
            raise UserError(f"cannot be read: {reason}", str(path)) from error
        if mode not in ("L", "RGB"):
            raise UserError(f"is of mode {mode}", str(path), "samples are 8-bit grey or RGB pictures")
        images.append(torch.from_numpy(array).view(*array.shape[:2], -1).permute(2, 0, 1))
        if images[-1].shape != images[0].shape:
            raise UserError(f"is {list(images[-1].shape)}, the first is {list(images[0].shape)}", str(path))
    if not images:
        raise UserError("holds no PNG files", str(folder), "give a folder of PNG files, or a .npz")
    return torch.stack(images), sha.hexdigest()


def note_unread(path: Path, screen: Screen, *, images: bool, moments: bool) -> None:
    """Name the arrays of a .npz file that are used neither as images nor as moments."""
    unread = unread_arrays(path, images=images, moments=moments)
    if unread:
        screen.say(f"{path}: arrays that were not used: {brief(unread)}")


def file_source(request: Request, screen: Screen) -> FileSource:
    """The samples of a request. Raises UserError for too few, and for settings that only a model has."""
    path = request.model
    labels: Tensor | None = None
    if path.is_dir():
        listing = Listing.of(path, links=True)
        for note in check_folder_of_samples(path, listing):
            screen.say(f"{path}: {note}")
        images, digest = read_pngs(path, listing)
    elif path.is_file():
        images, labels = read_samples(path)
        note_unread(path, screen, images=True, moments=False)
        digest = file_digest(path)
    else:
        raise UserError("no such file of samples", str(path))
    if request.blocks * request.samples + request.first_seed > len(images):
        raise UserError(f"holds {len(images)} samples", str(path), "lower --samples or --seeds")
    drawn = {
        "--search": request.search, "--mid-t": request.mid_t, "--eta": request.eta, "--worse": request.worse,
        "--labels": request.label_rule, "--steps": request.steps[0],
        "--omega": None if request.omega == 1 else request.omega,
    }  # fmt: skip
    for option, value in drawn.items():
        if value is not None:
            raise UserError("has no effect: the samples are drawn already", option, "leave it out")
    return FileSource(images, labels, digest)
