"""What a set of latents and a model of latents remember of their autoencoder. No torch here."""

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
