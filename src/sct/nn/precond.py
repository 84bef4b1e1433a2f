"""Preconditioning: the scalars around a raw network F that make it a denoiser D.

D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise)
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sct.core.types import expand


class Scalings(NamedTuple):
    """c_skip, c_out, c_in, c_noise, each [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Preconditioned(nn.Module):
    """A raw network with its preconditioning: the Denoiser that is trained, stored and sampled.

    The network is called as network(x, c_noise [B], one_hot [B, num_classes] or None) and has the
    attributes `image_shape` (C, H, W), `num_classes` (0: unconditional) and `options` (its constructor's
    arguments, from which a folder rebuilds it).

    Attributes:
        meta: what else is known of the model (class names, schedule, training); stored with it.
    """

    kind: ClassVar[str]
    network_name: ClassVar[str] = "model"
    """The attribute that holds the network, so the prefix of its parameters: official weights fix it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        setattr(self, self.network_name, network)
        self.meta: dict[str, object] = {}

    @property
    def network(self) -> nn.Module:
        return getattr(self, self.network_name)

    @property
    def options(self) -> dict[str, object]:
        """The constructor's arguments beside the network."""
        return {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.image_shape  # type: ignore[return-value]

    @property
    def num_classes(self) -> int:
        return self.network.num_classes  # type: ignore[return-value]

    def scalings(self, sigma: Tensor) -> Scalings:
        raise NotImplementedError

    def one_hot(self, condition: Tensor | None, batch: int, like: Tensor) -> Tensor | None:
        """Class labels [B] or weights [B, num_classes] → [B, num_classes]; None → zeros ("no class").

        Raises ValueError for labels outside 0 … num_classes − 1, a wrong width, or a condition given to an
        unconditional model.
        """
        if self.num_classes == 0:
            if condition is not None:
                raise ValueError("a condition was given, but the model is unconditional")
            return None
        if condition is None:
            return like.new_zeros(batch, self.num_classes)
        if condition.is_floating_point():
            if condition.shape != (batch, self.num_classes):
                raise ValueError(
                    f"condition has shape {list(condition.shape)}, expected [{batch}, {self.num_classes}]"
                )
            return condition.to(like)
        if condition.numel() and (int(condition.min()) < 0 or int(condition.max()) >= self.num_classes):
            raise ValueError(f"class labels must lie in 0 … {self.num_classes - 1}")
        return nn.functional.one_hot(condition.long(), self.num_classes).to(like)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        """x [B, C, H, W], sigma [B] or a scalar, condition as in `one_hot` → x̂_0 [B, C, H, W].

        Computes in the parameters' dtype; noise levels and scalings always in at least fp32.
        """
        dtype = next(self.network.parameters()).dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device).expand(x.shape[0])
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        raw = self.network(expand(c_in, x) * x, c_noise, self.one_hot(condition, x.shape[0], c_noise))
        return expand(c_skip, x) * x + expand(c_out, x) * raw


class EDMPrecond(Preconditioned):
    """EDM's preconditioning (2206.00364, table 1), F's input, output and target at unit variance.

    c_skip = σ_d²/(σ² + σ_d²), c_out = σ·σ_d/√(σ² + σ_d²), c_in = 1/√(σ² + σ_d²), c_noise = ln(σ)/4.
    At σ = 0: D(x; 0) = x, the consistency boundary; the logarithm is clamped, its factor c_out is 0.
    """

    kind = "edm"

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__(network)
        self.sigma_data = sigma_data

    @property
    def options(self) -> dict[str, object]:
        return {"sigma_data": self.sigma_data}

    def scalings(self, sigma: Tensor) -> Scalings:
        variance = sigma.square() + self.sigma_data**2
        c_in = variance.rsqrt()
        c_noise = sigma.clamp(min=torch.finfo(sigma.dtype).tiny).log() / 4
        return Scalings(self.sigma_data**2 / variance, sigma * self.sigma_data * c_in, c_in, c_noise)
