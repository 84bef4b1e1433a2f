"""Reference statistics: computed once and kept, or read from the files that others publish."""

import hashlib
import io
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.metrics.feature_file import FeatureFile, Rows, feature_file
from consistune.metrics.features import Extractor, blocks, image_digest
from consistune.metrics.moments import Convention, Moments
from consistune.metrics.neighbours import NEIGHBOURS, radii
from consistune.pickles.arrays import read_arrays
from consistune.system.files import write_atomically
from consistune.system.host import variable

KEPT_ROWS = 10_000
"""Rows of a side that what needs pairs of features looks at (neighbours, kernel distance): work and memory
grow with their square. The moments take every image."""
STATISTICS, FEATURES, RADII = "statistics.npz", "features.npy", "radii.npy"
FACTS = ("consistune", "sct")
"""Under the first name a file says what it must be compared with; version 0.1.0 wrote the second."""


@dataclass(frozen=True)
class Reference:
    """Moments of the reference features, float64, and the features where they are ours.

    Attributes:
        count: images behind the moments; None where a foreign file does not say.
        identity: the extractor's; None where a foreign file does not say: then it is the user's word.
        image_shape: (C, H, W) of the images; None where a foreign file does not say.
        mirrored: the mirror images are in it too.
        features: rows of it [m, D]; rows[i] is the image that row i shows.
        folder: where the cache keeps it.
        convention: of the covariance; None where a foreign file does not say.
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

    def in_convention(self, wanted: Convention) -> "Reference":
        """With the covariance divided so; a foreign file's, which does not say how it is, stays as it is."""
        if self.convention in (None, wanted):
            return self
        if self.count is None:
            raise UserError(
                f"is {self.convention} and does not count its images", self.source, "--covariance"
            )
        kept = (self.count - 1) / self.count
        scale = kept if wanted == "biased" else 1 / kept
        return replace(self, covariance=self.covariance * scale, convention=wanted)

    def sample_radii(self, device: torch.device) -> Tensor:
        """`radii` of the kept features, computed once."""
        if self.features is None or self.folder is None:
            raise UserError("has no features, only their moments", self.source, "give --data with images")
        file = self.folder / RADII
        if file.is_file():
            return torch.from_numpy(np.load(file))
        found = radii(self.features, NEIGHBOURS, device)
        write_atomically(file, _npy(found))
        return found

    def save(self, path: Path) -> None:
        """EDM's layout (mu, sigma), with what it must be compared with under `consistune`."""
        write_atomically(path, _npz(self.mean, self.covariance, self._facts()))

    def _facts(self) -> dict[str, Any]:
        names = ("source", "count", "identity", "image_shape", "mirrored", "digest")
        return {name: getattr(self, name) for name in names} | {"covariance": self.convention}


def cache_folder() -> Path:
    """$CONSISTUNE_CACHE, or ~/.cache/consistune."""
    return Path(variable("CACHE") or Path.home() / ".cache" / "consistune")


def build_reference(
    name: str, images: Tensor, extractor: Extractor, mirrored: bool = False, cache: Path | None = None
) -> Reference:
    """The reference of uint8 images [n, C, H, W], from the cache where it was made before.

    The key is the hash of the images' pixels, the extractor's identity and `mirrored`. An entry is made under
    another name and renamed, so a broken-off pass leaves nothing that could be taken for one.
    """
    digest = image_digest(images)
    key = hashlib.sha256(f"1 {digest} {extractor.identity} {mirrored} {KEPT_ROWS}".encode()).hexdigest()[:32]
    folder = (cache or cache_folder()) / "reference" / key
    if not (folder / STATISTICS).is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as partial:
            _compute(Path(partial) / "entry", name, images, extractor, mirrored, digest)
            try:
                (Path(partial) / "entry").rename(folder)
            except OSError:  # another process was first
                if not (folder / STATISTICS).is_file():
                    raise
    found = _from_arrays(dict(np.load(folder / STATISTICS)), name)
    features = FeatureFile(folder / FEATURES)
    return replace(found, source=name, features=features, rows=random_rows(len(images)), folder=folder)


def random_rows(count: int) -> Tensor:
    """All rows, or KEPT_ROWS random ones, the same every time, in order: sets are grouped by class."""
    if count <= KEPT_ROWS:
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:KEPT_ROWS].sort().values


def _compute(
    folder: Path, name: str, images: Tensor, extractor: Extractor, mirrored: bool, digest: str
) -> None:
    if len(images) == 0:
        raise UserError("has no images", name)
    folder.mkdir()
    kept = torch.zeros(len(images), dtype=torch.bool)
    kept[random_rows(len(images))] = True
    dim = extractor.protocol.dim or extractor(images[:1]).shape[1]
    moments = Moments(dim, everywhere=True)
    start = 0
    with feature_file(folder / FEATURES, int(kept.sum()), dim) as file:
        for part in blocks(images):
            found = extractor(part)
            moments.update(found)
            file.append(found[kept[start : start + len(part)]])
            start += len(part)
            if mirrored:
                moments.update(extractor(part.flip(-1)))
    mean, covariance = moments.compute()
    _, channels, height, width = images.shape
    made = Reference(
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
    made.save(folder / STATISTICS)


def read_reference(path: Path, extractor: Extractor) -> Reference:
    """Statistics from a file: ours, EDM's .npz (mu, sigma), or EDM2's .pkl ({metric: {mu, sigma}}).

    Only ours says by which extractor it was made; for the others that is the user's word, and a published
    file has no flips and unbiased covariances. Pickles are read as data, nothing in them is executed.
    Raises UserError for anything else, with what was found.
    """
    if path.suffix == ".pkl":
        table = read_arrays(path.read_bytes(), str(path))
        wanted = extractor.name.replace("-", "_")
        if not isinstance(table, dict) or not isinstance(table.get(wanted), dict):
            found = ", ".join(str(key) for key in table) if isinstance(table, dict) else type(table).__name__
            raise UserError(f"has no statistics {wanted!r}, only {found}", str(path))
        arrays = {**table[wanted], "count": table.get("num_images")}
    else:
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in ("mu", "sigma", *FACTS) if key in archive}
        except (OSError, ValueError) as error:
            raise UserError(f"cannot be read ({error})", str(path), "give a .npz or a .pkl") from error
    return _from_arrays(arrays, str(path))


def _from_arrays(arrays: dict[str, Any], where: str) -> Reference:
    if not {"mu", "sigma"} <= set(arrays):
        raise UserError("has no mu and sigma", where, "an image batch (arr_0) is given as --data")
    mean, covariance = (torch.from_numpy(np.array(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}", where)
    if not (mean.isfinite().all() and covariance.isfinite().all()):
        raise UserError("holds numbers that are not finite", where)
    known = next((arrays[key] for key in FACTS if key in arrays), "{}")
    facts = json.loads(str(known))
    shape = facts.get("image_shape")
    return Reference(
        source=facts.get("source", where),
        mean=mean,
        covariance=covariance,
        count=facts.get("count", arrays.get("count")),
        identity=facts.get("identity"),
        image_shape=tuple(shape) if shape else None,
        mirrored=facts.get("mirrored", False),
        digest=facts.get("digest"),
        convention=facts.get("covariance"),
    )


def read_samples(path: Path) -> tuple[Tensor, Tensor | None]:
    """The original consistency models' sample batch: arr_0 uint8 [n, H, W, C], and perhaps labels arr_1.

    Returns uint8 images [n, C, H, W] and labels [n] or None. Raises UserError for anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels = archive["arr_0"]
            labels = torch.from_numpy(archive["arr_1"]).long() if "arr_1" in archive else None
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"is not a batch of images ({error})", str(path), "arr_0 is uint8 [n, H, W, C]"
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] not in (1, 3):
        raise UserError(f"arr_0 is {pixels.dtype} {pixels.shape}, not uint8 [n, H, W, C]", str(path))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels


def _npz(mean: Tensor, covariance: Tensor, facts: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, mu=mean.numpy(), sigma=covariance.numpy(), consistune=np.array(json.dumps(facts)))
    return buffer.getvalue()


def _npy(values: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    return buffer.getvalue()
