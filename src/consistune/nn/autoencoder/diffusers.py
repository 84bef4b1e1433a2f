"""Folders of diffusers with AutoencoderKL (SD, SDXL, FLUX) or AutoencoderTiny; the extra is `diffusers`."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.nn.autoencoder.base import Autoencoder

CONFIG = "config.json"
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
    """The autoencoder in a folder of diffusers, in fp32. Only safetensors are read; nothing is downloaded.

    Raises UserError for another class, missing or damaged weights, and without the package diffusers.
    """
    where = str(folder)
    try:
        name = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError("is not a folder of diffusers: config.json cannot be read", where) from error
    if name not in CLASSES:
        raise UserError(f"holds {name!r}, not an autoencoder", where, f"known are: {', '.join(CLASSES)}")
    try:
        import diffusers
    except ImportError as error:
        what = "the package diffusers is missing"
        raise UserError(what, where, 'pip install "consistune[diffusers]"') from error
    try:
        kind = getattr(diffusers, name)
        model, report = kind.from_pretrained(
            where,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises errors of many kinds for a damaged folder
        what = f"its weights cannot be read ({' '.join(str(error).split())[:120]})"
        raise UserError(what, where) from error
    wrong = [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]]
    if wrong:
        raise UserError(f"its weights do not fit config.json, beginning with {wrong[0]!r}", where)
    return DiffusersAutoencoder(model)
