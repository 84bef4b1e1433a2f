"""Statistics of the real images: computed once and cached, or read from files that others publish."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from io import BytesIO
from operator import index
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.cache import (
    damaged,
    folder_of_this_process,
    intact,
    keep,
    not_kept,
    seal,
    usable_cache,
)
from consistune.metrics.feature_file import FeatureFile, Rows, feature_file
from consistune.metrics.features import Extractor, blocks, image_digest
from consistune.metrics.moments import Convention, Moments, moments
from consistune.metrics.neighbours import NEIGHBOURS, radii
from consistune.pickles.arrays import read_arrays
from consistune.system.files import atomic_file, replace_folder
from consistune.system.zipped import DAMAGED

KEPT_ROWS = 10_000
"""Rows of each side in metrics of pairs (neighbours, kernel distance): work and memory grow with the square
of their number. The moments take every image."""
MAX_CLASSES = 1_000_000
"""As of a prepared set: each class has a name, so that a label takes memory by its size."""
STATISTICS, FEATURES, RADII = "statistics.npz", "features.npy", "radii.npy"
FACTS = ("consistune", "sct")
"""The array of a file that holds the facts about the statistics; version 0.1.0 wrote the second name."""
LABELS = ("arr_1", "labels", "label")
"""An array of the samples' labels has one of these names."""


@dataclass(frozen=True)
class ReferenceStatistics:
    """Mean [D] and covariance [D, D] of the real images' features, float64, and perhaps the features.

    Attributes:
        count: number of images, mirror images included.
        identity: of the extractor. A foreign file has none; then the user says which extractor it was.
        image_shape: (C, H, W) of the images.
        mirrored: the mirror images are included.
        features: of at most KEPT_ROWS images [m, D]; rows[i] is the image of row i.
        folder: of the cache's entry.
        convention: of the covariance.

    What a foreign file does not say is None.
    """

    source: str
    mean: Tensor
    covariance: Tensor
    count: int | None
    identity: str | None
    image_shape: tuple[int, int, int] | None
    mirrored: bool
    digest: str | None = None
    features: Rows | None = None
    rows: Tensor | None = None
    folder: Path | None = None
    convention: Convention | None = None

    def check(self, extractor: Extractor, image_shape: tuple[int, int, int], mirrored: bool) -> None:
        """Raises UserError where samples of this shape, by this extractor, must not be compared with it."""
        dim = extractor.protocol.dim
        if dim is not None and dim != len(self.mean):
            raise UserError(f"has {len(self.mean)} features, {extractor.name} has {dim}", self.source)
        if self.identity is not None and self.identity != extractor.identity:
            raise UserError(
                f"was made with {self.identity}, the samples are seen by {extractor.identity}",
                self.source,
                "use the extractor it was made with, or compute it anew from the data",
            )
        if self.image_shape is not None and self.image_shape != image_shape:
            raise UserError(f"is of images {self.image_shape}, the samples are {image_shape}", self.source)
        if self.identity is not None and self.mirrored != mirrored:
            with_or_without = "with" if self.mirrored else "without"
            raise UserError(f"was made {with_or_without} mirror images", self.source, "see --x-flip")

    def in_convention(self, convention: Convention) -> "ReferenceStatistics":
        """The same with the covariance in a convention; a covariance of unknown convention stays as it is.

        Raises UserError where the number of images is not known.
        """
        if self.convention in (None, convention):
            return self
        if self.count is None:
            raise UserError(
                f"is {self.convention} and does not count its images", self.source, "--covariance"
            )
        ratio = (self.count - 1) / self.count
        scale = ratio if convention == "biased" else 1 / ratio
        return replace(self, covariance=self.covariance * scale, convention=convention)

    def feature_radii(self, device: torch.device) -> Tensor:
        """`radii` of the features [m], from the cache where they were computed before."""
        if self.features is None or self.folder is None:
            raise UserError("has no features, only their moments", self.source, "give --data with images")
        file = self.folder / RADII
        if intact(file):
            try:
                kept = torch.from_numpy(np.load(file))
                if kept.shape == self.features.shape[:1] and kept.isfinite().all():
                    return kept
            except DAMAGED:
                pass
            damaged(file)
        computed = radii(self.features, NEIGHBOURS, device)
        written = BytesIO()
        np.save(written, computed.numpy())
        keep(file, written.getvalue())
        return computed

    def save(self, path: Path) -> None:
        """Write EDM's layout (mu, sigma), with the facts that `check` needs under `consistune`."""
        names = ("source", "count", "identity", "image_shape", "mirrored", "digest")
        facts = {name: getattr(self, name) for name in names} | {"covariance": self.convention}
        text = np.array(json.dumps(facts))
        with atomic_file(path) as file:
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy(), consistune=text)


def build_reference(
    name: str, images: Tensor, extractor: Extractor, mirrored: bool = False, cache: Path | None = None
) -> ReferenceStatistics:
    """Statistics of uint8 images [n, C, H, W], from the cache where they were computed before.

    The key is the hash of the images' pixels, the extractor's identity and `mirrored`. An entry is written
    under another name and renamed at the end, so an interrupted pass leaves no incomplete entry.
    """
    digest = image_digest(images)
    key = hashlib.sha256(f"1 {digest} {extractor.identity} {mirrored} {KEPT_ROWS}".encode()).hexdigest()[:32]
    place = cache or usable_cache()
    try:
        folder = _entry(place / "reference" / key, name, images, extractor, mirrored, digest)
    except OSError as error:
        if place == folder_of_this_process():
            raise
        not_kept(error)
        place = folder_of_this_process()
        folder = _entry(place / "reference" / key, name, images, extractor, mirrored, digest)
    with _opened(folder / STATISTICS) as arrays:
        stored = _from_arrays(dict(arrays), name)
    features = FeatureFile(folder / FEATURES)
    return replace(stored, source=name, features=features, rows=random_rows(len(images)), folder=folder)


def _entry(
    folder: Path, name: str, images: Tensor, extractor: Extractor, mirrored: bool, digest: str
) -> Path:
    """The entry of the cache, computed where it is not there or damaged; returns `folder`."""
    if not _sound(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
            new = Path(partial) / "entry"
            _compute(new, name, images, extractor, mirrored, digest)
            try:
                replace_folder(new, folder)
            except OSError:  # another process was first
                if not _sound(folder):
                    raise
    return folder


def _sound(folder: Path) -> bool:
    """Whether an entry can be used; a warning names what is damaged in it."""
    if not (folder.is_dir() and all(intact(folder / file) for file in (STATISTICS, FEATURES))):
        return False
    try:
        with _opened(folder / STATISTICS) as stored:  # reading compares the sums of the ZIP
            _from_arrays(dict(stored), str(folder))
        features = FeatureFile(folder / FEATURES)
        features[torch.tensor([len(features) - 1])]
    except (UserError, *DAMAGED):
        damaged(folder)
        return False
    return True


def statistics_in_memory(name: str, images: Tensor, extractor: Extractor) -> ReferenceStatistics:
    """Statistics of uint8 images [n, C, H, W], not cached. All features are in memory at once."""
    mean, covariance = moments(extractor(images))
    _, channels, height, width = images.shape
    shape = (channels, height, width)
    return ReferenceStatistics(
        name, mean, covariance, len(images), extractor.identity, shape, False, convention="unbiased"
    )


def random_rows(count: int) -> Tensor:
    """All rows, or KEPT_ROWS random ones in ascending order, the same every time.

    They are random because sets of images are grouped by class.
    """
    if count <= KEPT_ROWS:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:KEPT_ROWS].sort().values


def _compute(
    folder: Path, name: str, images: Tensor, extractor: Extractor, mirrored: bool, digest: str
) -> None:
    if len(images) == 0:
        raise UserError("has no images", name)
    if len(images) <= NEIGHBOURS:
        raise UserError(f"holds {len(images)} images", name, f"give {NEIGHBOURS + 1} or more, better all")
    folder.mkdir()
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[random_rows(len(images))] = True
    dim = extractor.protocol.dim or extractor(images[:1]).shape[1]
    accumulated = Moments(dim)
    start = 0
    with feature_file(folder / FEATURES, int(kept.sum()), dim) as file:
        for part in blocks(images):
            features = extractor(part)
            accumulated.update(features)
            file.append(features[kept[start : start + len(part)]])
            start += len(part)
            if mirrored:
                accumulated.update(extractor(part.flip(-1)))
    mean, covariance = accumulated.compute()
    _, channels, height, width = images.shape
    statistics = ReferenceStatistics(
        source=name,
        mean=mean,
        covariance=covariance,
        count=len(images) * (2 if mirrored else 1),
        identity=extractor.identity,
        image_shape=(channels, height, width),
        mirrored=mirrored,
        digest=digest,
        convention="unbiased",
    )
    statistics.save(folder / STATISTICS)
    for kept_file in (STATISTICS, FEATURES):
        seal(folder / kept_file)


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    """The arrays of a .npz file. Raises ValueError for a single array, and what numpy raises (DAMAGED)."""
    found = np.load(path, allow_pickle=False)
    if not isinstance(found, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array")
    return found


def arrays_in(path: Path) -> set[str]:
    """The names of the arrays in a .npz file; none where it is no such file."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return set()
    try:
        with _opened(path) as archive:
            return set(archive.files)
    except DAMAGED as error:
        raise UserError(f"cannot be read ({error})", str(path), "give a .npz file") from error


def unread_arrays(path: Path, *, images: bool, moments: bool) -> list[str]:
    """The arrays in a .npz file that are no images or labels, no moments, and none of this program's own."""
    names = arrays_in(path)
    read = {"seeds", *FACTS} | ({"mu", "sigma"} if moments else set())
    if images:
        read |= {"arr_0", *[name for name in LABELS if name in names][:1]}
    return sorted(names - read)


def read_reference(path: Path, extractor: Extractor) -> ReferenceStatistics:
    """Statistics from a file: ours, EDM's .npz (mu, sigma), or EDM2's .pkl ({metric: {mu, sigma}}).

    Only our files name their extractor; of the others the user must know it. Published files have unbiased
    covariances and no mirror images. Pickles are read as data, nothing in them is executed.
    Raises UserError for anything else, and says what the file holds.
    """
    try:
        if path.suffix.lower() == ".pkl":
            arrays = _of_edm2(read_arrays(path.read_bytes(), str(path)), extractor, str(path))
        else:
            with _opened(path) as archive:
                arrays = {key: archive[key] for key in ("mu", "sigma", *FACTS) if key in archive}
    except DAMAGED as error:
        raise UserError(f"cannot be read ({error})", str(path), "give a .npz or a .pkl") from error
    return _from_arrays(arrays, str(path))


def _of_edm2(table: Any, extractor: Extractor, where: str) -> dict[str, Any]:
    """The extractor's part of EDM2's table, and the number of images."""
    key = extractor.name.replace("-", "_")
    if not isinstance(table, dict) or not isinstance(table.get(key), dict):
        given = ", ".join(map(str, table)) if isinstance(table, dict) else type(table).__name__
        raise UserError(f"has no statistics {key!r}, only {given}", where)
    return {**table[key], "count": table.get("num_images")}


def _from_arrays(arrays: dict[str, Any], where: str) -> ReferenceStatistics:
    if not {"mu", "sigma"} <= set(arrays):
        raise UserError("has no mu and sigma", where, "an image batch (arr_0) is given as --data")
    try:
        numbers = [np.array(arrays[key]).astype(np.float64, casting="same_kind") for key in ("mu", "sigma")]
        mean, covariance = map(torch.from_numpy, numbers)
    except (TypeError, ValueError) as error:
        raise UserError(f"mu and sigma are no numbers ({error})", where) from error
    if mean.ndim != 1 or len(mean) == 0 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}", where)
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError("holds numbers that are not finite", where)
    largest = covariance.abs().max()
    if (covariance - covariance.T).abs().max() > 1e-3 * largest or covariance.diagonal().min() < 0:
        raise UserError("sigma is no covariance: not symmetric, or with a variance below 0", where)
    facts = _facts(arrays, where)
    shape = facts.get("image_shape")
    return ReferenceStatistics(
        source=facts.get("source", where),
        mean=mean,
        covariance=covariance,
        count=facts.get("count"),
        identity=facts.get("identity"),
        image_shape=tuple(shape) if shape else None,
        mirrored=facts.get("mirrored", False),
        digest=facts.get("digest"),
        convention=facts.get("covariance"),
    )


def _facts(arrays: dict[str, Any], where: str) -> dict[str, Any]:
    """The facts that our files hold, or the count of another's. Raises UserError where they make no sense."""
    text = str(next((arrays[key] for key in FACTS if key in arrays), "{}"))
    try:
        facts = {"count": arrays.get("count")} | json.loads(text)
        count, shape = facts["count"], facts.get("image_shape")
        facts["count"] = None if count is None else index(count)
        sensible = (
            (count is None or facts["count"] > 1)
            and isinstance(facts.get("mirrored", False), bool)
            and (shape is None or (len(shape) == 3 and all(isinstance(side, int) for side in shape)))
            and all(isinstance(facts.get(key, ""), str | None) for key in ("source", "identity", "digest"))
            and facts.get("covariance") in (None, *get_args(Convention))
        )
    except (TypeError, ValueError, RecursionError):
        sensible = False
    if not sensible:
        raise UserError(f"what it says of itself makes no sense: {text[:100]}", where, "compute it anew")
    return facts


def read_samples(path: Path) -> tuple[Tensor, Tensor | None]:
    """A sample batch of the original consistency models: arr_0 uint8 [n, H, W, C], perhaps with labels.

    These are arr_1, labels or label, one integer from 0 for each image.

    Returns uint8 images [n, C, H, W] and labels [n] or None. Raises UserError for anything else.
    """
    try:
        with _opened(path) as archive:
            pixels = archive["arr_0"]
            name = next((name for name in LABELS if name in archive), "")
            labels = archive[name] if name else None
    except (KeyError, *DAMAGED) as error:
        raise UserError(
            f"is not a batch of images ({error})", str(path), "arr_0 is uint8 [n, H, W, C]"
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise UserError(f"arr_0 is {pixels.dtype} {pixels.shape}, not uint8 [n, H, W, C]", str(path))
    if pixels.size == 0:
        raise UserError(f"arr_0 holds no images: {pixels.shape}", str(path))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    if labels is None:
        return images, None
    whole = labels.shape == pixels.shape[:1] and labels.dtype.kind in "iu"
    if not whole or not 0 <= labels.min() <= labels.max() < MAX_CLASSES:
        what = f"{name} is {labels.dtype} {list(labels.shape)}, not {len(pixels)} labels from 0"
        raise UserError(what, str(path), f"one integer below {MAX_CLASSES:,} for each image of arr_0")
    return images, torch.from_numpy(labels.astype(np.int64))
