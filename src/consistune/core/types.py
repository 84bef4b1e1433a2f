"""The types that all parts share: a batch of data, a condition, a pair of times, a denoiser, progress."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import torch
from torch import Tensor

NO_FLOAT64 = ("mps", "xpu")
"""Devices without float64 (Intel's have it in some models only)."""

Progress: TypeAlias = int
"""Training images seen so far. Schedules are functions of it, so the batch size changes nothing."""


@dataclass(frozen=True)
class Condition:
    """What a network is given beside x_t and t, where that is more than a label.

    Attributes:
        label: class labels [B], weights or an embedding [B, K], or None: no label.
        hidden: the rows [B] (bool) whose label the network must not see; None: it sees all.
        augment: what augmentation did to each image [B, A]; None: nothing.
    """

    label: Tensor | None = None
    hidden: Tensor | None = None
    augment: Tensor | None = None


Conditioning: TypeAlias = Tensor | Condition | None
"""Labels [B] or [B, K] alone, a `Condition`, or None."""


@dataclass(frozen=True)
class Batch:
    """Training images and what is known of them.

    Attributes:
        x_0: images in [-1, 1], [B, C, H, W].
        condition: integer class labels [B], or an embedding [B, K], or None.
        index: each image's row in the reference bank [B], or None where there is no bank.
        augment, hidden: see `Condition`.
    """

    x_0: Tensor
    condition: Tensor | None = None
    index: Tensor | None = None
    augment: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def network_condition(self) -> Conditioning:
        """What the trained network is given. References and teachers take `condition`, with every label."""
        if self.augment is None and self.hidden is None:
            return self.condition
        return Condition(self.condition, self.hidden, self.augment)

    def __len__(self) -> int:
        return self.x_0.shape[0]

    def rows(self, part: slice | Tensor) -> "Batch":
        """These rows of the batch."""
        optional = (self.condition, self.index, self.augment, self.hidden)
        return Batch(self.x_0[part], *(None if value is None else value[part] for value in optional))


@dataclass(frozen=True)
class Times:
    """A transition t → r inside the phase that ends at s: t > r ≥ s ≥ 0, each [B]."""

    t: Tensor
    r: Tensor
    s: Tensor

    def rows(self, part: slice) -> "Times":
        """These rows of the batch."""
        return Times(self.t[part], self.r[part], self.s[part])


class Denoiser(Protocol):
    """x̂_0 = D(x_t, t | condition): images [B, C, H, W] from noisy images and their times [B].

    Preconditioning happens inside. A diffusion model's x̂_0 is the posterior mean E[x_0 | x_t]; a
    consistency model's is the end of the trajectory through x_t.
    """

    def __call__(self, x_t: Tensor, t: Tensor, condition: Conditioning = None) -> Tensor: ...


class TwoTimeDenoiser(Protocol):
    """x̂_0 = D(x_t, t, s | condition), with which `NoiseSchedule.step` reaches the flow's solution at s ≤ t.

    s None is s = t, where x̂_0 is the posterior mean; s = 0 gives the trajectory's end. `two_times` tells such
    a model from a `Denoiser`; `predict` calls either.
    """

    two_times: bool

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Conditioning = None, s: Tensor | None = None
    ) -> Tensor: ...


def predict(
    model: Denoiser, x_t: Tensor, t: Tensor, condition: Conditioning = None, s: Tensor | None = None
) -> Tensor:
    """x̂_0 of a jump from t to s: a two-time model is told s, for another model it changes nothing."""
    if s is None or not getattr(model, "two_times", False):
        return model(x_t, t, condition)
    return cast(TwoTimeDenoiser, model)(x_t, t, condition, s)


def expand(value: Tensor, like: Tensor) -> Tensor:
    """Give a per-sample value [B] the trailing axes it needs to broadcast against `like` [B, ...]."""
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def exact_device(device: torch.device) -> torch.device:
    """Where the float64 work for a device is done: there, or on the CPU where the device has no float64."""
    return torch.device("cpu") if device.type in NO_FLOAT64 else device


def widest(device: torch.device) -> torch.dtype:
    """float64, or fp32 on a device without it."""
    return torch.float32 if device.type in NO_FLOAT64 else torch.float64


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on the device; the host does not wait for a copy to CUDA."""
    return x.to(device, non_blocking=device.type == "cuda")
