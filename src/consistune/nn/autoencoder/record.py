"""What a set of latents and a model of latents remember of their autoencoder. No torch here."""

import math
from dataclasses import dataclass
from typing import Literal

from consistune.errors import UserError

Stored = Literal["uint8", "float16"]


@dataclass(frozen=True)
class Latents:
    """How latents z of deviation σ_data come from an autoencoder's own: z = σ_data·(E(x) − mean)/deviation.

    Attributes:
        autoencoder: its name, or its folder.
        identity: its SHA-256 (`Autoencoder.identity`).
        factor: a picture's side divided by its latents'.
        picture_shape: (channels, height, width) of the pictures.
        mean, deviation: of each channel of E(x), over the training pictures.
        sigma_data: the standard deviation of each channel of z.
        limit: |z| ≤ limit·σ_data is kept.
        stored: uint8: levels 0 … 255 stand for −limit·σ_data … limit·σ_data.
        mirrored: each picture's mirror image is in the training set, after the picture.
        psnr: of training pictures that were decoded from the stored latents, in dB.

    Raises ValueError for numbers that no set of latents has.
    """

    autoencoder: str
    identity: str
    factor: int
    picture_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    sigma_data: float = 0.5
    limit: float = 3.5
    stored: Stored = "uint8"
    mirrored: bool = False
    psnr: float | None = None

    def __post_init__(self) -> None:
        positive = (*self.deviation, self.sigma_data, self.limit)
        if not all(math.isfinite(value) for value in (*self.mean, *positive)) or min(positive) <= 0:
            raise ValueError(
                "mean, deviation, sigma_data and limit must be finite, and the last three above 0"
            )
        if not 0 < len(self.mean) == len(self.deviation):
            raise ValueError(f"{len(self.mean)} means and {len(self.deviation)} deviations of channels")
        colours, *sides = self.picture_shape
        if colours != 3 or self.factor < 1 or any(side < 1 or side % self.factor for side in sides):
            raise ValueError(f"factor {self.factor} does not fit pictures of {list(self.picture_shape)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latents."""
        _, height, width = self.picture_shape
        return len(self.mean), height // self.factor, width // self.factor

    def check_shape(self, shape: tuple[int, int, int], where: str) -> None:
        """Raises UserError for latents of another shape than these."""
        if tuple(shape) != self.shape:
            made = f"with an autoencoder and pictures that give {list(self.shape)}"
            raise UserError(
                f"says latents of {list(shape)}, {made}", where, "use the file as consistune wrote it"
            )

    @property
    def scale(self) -> float:
        """z = scale·v for the values v in [−1, 1] that uint8 levels stand for; 1 for float16."""
        return self.limit * self.sigma_data if self.stored == "uint8" else 1.0

    def check_same_space(self, other: "Latents | None", where: str) -> None:
        """Raises UserError unless latents of both mean the same: one autoencoder, one normalisation."""
        if other is None:
            raise UserError(
                f"are latents of {self.autoencoder}, the model makes pictures",
                where,
                "use pictures, or a model of latents",
            )
        self.check_same_autoencoder(other, where)
        if (self.mean, self.deviation, self.sigma_data) != (other.mean, other.deviation, other.sigma_data):
            raise UserError(
                "are normalised by another mean and deviation than the model's",
                where,
                "use the set that the model was trained on, or prepare again with --latents MODEL",
            )

    def check_same_autoencoder(self, other: "Latents", where: str) -> None:
        """Raises UserError unless latents of both are one autoencoder's, of pictures of one shape."""
        if (self.identity, self.picture_shape) != (other.identity, other.picture_shape):
            raise UserError(
                f"are latents of {_told(self)}, the model's are of {_told(other)}",
                where,
                "prepare the pictures again with the model's autoencoder",
            )


def _told(latents: Latents) -> str:
    shape = "×".join(map(str, latents.picture_shape))
    return f"{latents.autoencoder} ({latents.identity[:8]}) for pictures of {shape}"
