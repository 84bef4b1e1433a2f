"""Folders of diffusers with AutoencoderKL (SD, SDXL, FLUX) or AutoencoderTiny; the extra is `diffusers`."""

from pathlib import Path
from typing import Any

from torch import Tensor

from consistune.nn.autoencoder.base import Autoencoder
from consistune.nn.pretrained import pretrained

CLASSES = ("AutoencoderKL", "AutoencoderTiny")


class DiffusersAutoencoder(Autoencoder):
    """(E(x) − shift_factor)·scaling_factor, where E is the mean of AutoencoderKL's Gaussian; x in [−1, 1].

    AutoencoderTiny's own latents are scaled already; its config's factor is 1.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = model.config
        self.model = model
        self.channels = int(config.latent_channels)
        stages = (
            config.block_out_channels
            if type(model).__name__ == "AutoencoderKL"
            else config.encoder_block_out_channels
        )
        self.factor = 2 ** (len(stages) - 1)
        self.scaling = float(config.get("scaling_factor") or 1.0)
        self.shift = float(config.get("shift_factor") or 0.0)

    @property
    def settings(self) -> dict[str, object]:
        return {"class": type(self.model).__name__, "scaling": self.scaling, "shift": self.shift}

    def encode(self, pictures: Tensor) -> Tensor:
        encoded = self.model.encode(pictures)
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (raw - self.shift) * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / self.scaling + self.shift).sample


def open_folder(folder: Path) -> DiffusersAutoencoder:
    """The autoencoder in a folder of diffusers, as `nn.pretrained.pretrained` reads it."""
    return DiffusersAutoencoder(pretrained(folder, CLASSES, "an autoencoder"))
