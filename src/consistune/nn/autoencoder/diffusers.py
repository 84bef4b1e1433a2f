"""Folders of diffusers with AutoencoderKL (SD, SDXL, FLUX) or AutoencoderTiny; the extra is `diffusers`."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.nn.autoencoder.base import Autoencoder
from consistune.nn.pretrained import CONFIG, check_call, pretrained, without_memory
from consistune.system.numbers import is_number

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
        self.scaling = _number(config, "scaling_factor", 1.0)
        self.shift = _number(config, "shift_factor", 0.0)

    @property
    def settings(self) -> dict[str, object]:
        return {"class": type(self.model).__name__, "scaling": self.scaling, "shift": self.shift}

    def encode(self, pictures: Tensor) -> Tensor:
        encoded = self.model.encode(pictures)
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (raw - self.shift) * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents / self.scaling + self.shift).sample


def _number(config: Any, key: str, default: float) -> float:
    value = config.get(key) or default
    if not is_number(value) or not math.isfinite(value):
        raise UserError(f"{key} is {value!a}, not a number", CONFIG)
    return float(value)


def open_folder(folder: Path) -> DiffusersAutoencoder:
    """The autoencoder in a folder of diffusers, as `nn.pretrained.pretrained` reads it.

    Raises UserError, as that does, and where config.json has values with which it cannot be called.
    """
    made = DiffusersAutoencoder(pretrained(folder, CLASSES, "an autoencoder"))
    tried, where = without_memory(made), str(folder)
    pictures, latents = (1, 3, 8 * made.factor, 8 * made.factor), (1, made.channels, 8, 8)
    with torch.device("meta"):
        check_call(lambda: tried.encode(torch.zeros(pictures)), latents, where)
        check_call(lambda: tried.decode(torch.zeros(latents)), pictures, where)
    return made
