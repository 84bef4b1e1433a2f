"""What an autoencoder is: two maps, a factor, a number of channels, and an identity."""

import hashlib
from functools import cached_property

import torch
from torch import Tensor, nn

from consistune.errors import UserError

PIXELS_AT_ONCE = 1 << 19
"""Pictures go through an autoencoder in batches of about so many pixels: 128 pictures of 64×64."""


class UnfitAutoencoder(UserError):
    """An autoencoder that makes no latents of these pictures, or no pictures of these latents."""


class Autoencoder(nn.Module):
    """Pictures [B, 3, H, W] in [−1, 1] ↔ latents [B, channels, H/factor, W/factor], in fp32, deterministic.

    Attributes:
        factor: the picture's side divided by the latents' side.
        channels: of the latents.
    """

    factor: int
    channels: int

    def encode(self, pictures: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures, not clamped."""
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, object]:
        """What beside the weights changes the latents; part of the identity."""
        return {}

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the class's name, the settings, and the weights' names, shapes and values in fp32."""
        sha = hashlib.sha256(f"{type(self).__name__} {sorted(self.settings.items())}".encode())
        for name, value in sorted(self.state_dict().items()):
            sha.update(f"{name} {tuple(value.shape)}".encode())
            sha.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def latent_shape(self, picture_shape: tuple[int, int, int], where: str) -> tuple[int, int, int]:
        """(channels, H/factor, W/factor). Raises UserError where the sides are no multiples of the factor."""
        _, height, width = picture_shape
        if height % self.factor or width % self.factor:
            near = max(self.factor, round(min(height, width) / self.factor) * self.factor)
            raise UserError(
                f"sides of {width}×{height} are no multiples of {self.factor}, the autoencoder's factor",
                where,
                f"--size {near} would do",
            )
        return self.channels, height // self.factor, width // self.factor


class Pair(Autoencoder):
    """Any two modules as an autoencoder: encoder(pictures in [−1, 1]) → latents, decoder(latents) → pictures.

    The factor and the channels are found by encoding one picture of side `probe`. Raises ValueError where the
    two modules do not fit each other.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, probe: int = 64) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        like = next((p for p in self.parameters()), torch.empty(0))
        with torch.no_grad():
            picture = torch.zeros(1, 3, probe, probe, dtype=like.dtype, device=like.device)
            latents = encoder(picture)
            if latents.ndim != 4 or latents.shape[2] != latents.shape[3] or probe % latents.shape[2]:
                raise ValueError(f"the encoder makes {list(latents.shape)} of {list(picture.shape)}")
            back = decoder(latents)
        if back.shape != picture.shape:
            raise ValueError(f"the decoder makes {list(back.shape)} of {list(latents.shape)}")
        self.factor, self.channels = probe // latents.shape[2], latents.shape[1]

    def encode(self, pictures: Tensor) -> Tensor:
        return self.encoder(pictures)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def in_batches(count: int, picture_shape: tuple[int, int, int]) -> list[slice]:
    """Slices of 0 … count − 1 whose pictures have about PIXELS_AT_ONCE pixels together."""
    step = max(1, PIXELS_AT_ONCE // (picture_shape[1] * picture_shape[2]))
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]
