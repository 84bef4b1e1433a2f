"""The latents in which a model works: from pictures to latents z, stored or not, and back (METHOD §9)."""

from functools import lru_cache
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from consistune.core.posterior.mean import dequantise, quantise
from consistune.errors import UserError
from consistune.nn.autoencoder.base import Autoencoder, UnfitAutoencoder, in_batches
from consistune.nn.autoencoder.record import Latents
from consistune.nn.autoencoder.table import open_autoencoder

_Checked = TypeAdapter(Latents)


def from_model(model: Any) -> Latents | None:
    """The record in a model's card; None: a model of pictures.

    Raises UserError if it is malformed, or is of latents of another shape than the model's.
    """
    if model.card.latents is None:
        return None
    try:
        record = _Checked.validate_python(model.card.latents)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            f"{'.'.join(map(str, ('meta', 'latents', *first['loc'])))}: {first['msg']}", "config.json"
        ) from error
    record.check_shape(model.image_shape, "config.json")
    return record


class LatentSpace:
    """An autoencoder with the normalisation of a set of latents."""

    def __init__(self, record: Latents, autoencoder: Autoencoder) -> None:
        self.record, self.autoencoder = record, autoencoder

    def encode(self, pictures: Tensor) -> Tensor:
        """uint8 pictures [N, 3, H, W] → z [N, c, h, w] in fp32."""
        return self.standardised(encode(self.autoencoder, pictures))

    def standardised(self, raw: Tensor) -> Tensor:
        """The autoencoder's latents → z = σ_data·(raw − mean)/deviation."""
        return (raw - self._column("mean", raw)) / self._column("deviation", raw) * self.record.sigma_data

    def raw(self, z: Tensor) -> Tensor:
        """z → the autoencoder's latents, in fp32."""
        return z.float() / self.record.sigma_data * self._column("deviation", z) + self._column("mean", z)

    def stored(self, z: Tensor) -> Tensor:
        """z in the form in which a set keeps it, clipped to the limit."""
        if self.record.stored == "uint8":
            return quantise(z / self.record.scale)
        edge = self.record.limit * self.record.sigma_data
        return z.clamp(-edge, edge).half()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """z [N, c, h, w] → uint8 pictures [N, 3, H, W] on the CPU, a bounded number of pixels at a time.

        Raises UnfitAutoencoder where a picture is not finite.
        """
        shape = self.record.picture_shape
        device = _device(self.autoencoder)
        parts = [self._decoded(z[part].to(device)) for part in in_batches(len(z), shape)]
        return torch.cat(parts) if parts else torch.empty(0, *shape, dtype=torch.uint8)

    def _decoded(self, z: Tensor) -> Tensor:
        x = self.autoencoder.decode(_fast(self.raw(z)))
        if not bool(x.isfinite().all()):
            what = "makes pictures that are not finite"
            raise UnfitAutoencoder(what, f"autoencoder {self.record.autoencoder}", "use another")
        return quantise(x).cpu().contiguous()

    def _column(self, name: str, like: Tensor) -> Tensor:
        values: tuple[float, ...] = getattr(self.record, name)
        return torch.tensor(values, device=like.device, dtype=torch.float32)[:, None, None]


def _device(autoencoder: Autoencoder) -> torch.device:
    """That of its weights; an autoencoder without weights computes on the CPU."""
    return next(autoencoder.parameters(), torch.empty(0)).device


def _fast(x: Tensor) -> Tensor:
    """In the memory format in which a CPU convolves about twice as fast."""
    return x.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def encode(autoencoder: Autoencoder, pictures: Tensor) -> Tensor:
    """uint8 pictures [N, 3, H, W] → the autoencoder's latents in fp32, on the pictures' device."""
    device = _device(autoencoder)
    shape = (pictures.shape[1], pictures.shape[2], pictures.shape[3])
    parts = [
        autoencoder.encode(_fast(dequantise(pictures[part].to(device)))).float().to(pictures.device)
        for part in in_batches(len(pictures), shape)
    ]
    return torch.cat(parts)


@lru_cache(maxsize=4)
def open_space(record: Latents, device: torch.device | str = "cpu") -> LatentSpace:
    """The space of a record. Raises UserError where its autoencoder is not there, or is another one."""
    where = f"autoencoder {record.autoencoder}"
    autoencoder = open_autoencoder(record.autoencoder, where)
    if autoencoder.identity != record.identity:
        what = f"is {autoencoder.identity[:16]}…, the latents were made with {record.identity[:16]}…"
        raise UserError(what, where, "use the autoencoder that made them, or prepare the pictures again")
    return LatentSpace(record, autoencoder.to(device))


def pictures(space: LatentSpace | None, x: Tensor) -> Tensor:
    """x̂_0 [N, C, H, W] → uint8 pictures, all at once, on its device. space None: x̂_0 is of pictures."""
    return quantise(x if space is None else space.autoencoder.decode(space.raw(x)))


def psnr(pictures: Tensor, others: Tensor) -> float:
    """10·log₁₀(255²/mean squared difference) in dB over all uint8 pictures; ∞ where they are equal."""
    error = (pictures.float() - others.float()).square().mean()
    return float(10 * torch.log10(255**2 / error))
