"""Reproducible randomness: a generator for each image, a seed for each step, a dropout mask for each pair."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor


def mix_seed(*parts: int) -> int:
    """One well-mixed 63-bit seed from several integers (SplitMix64's finaliser applied part by part).

    Everything random in a training step is a function of mix_seed(seed, step, stream), so that a run
    continued from a checkpoint draws what the unbroken run would have drawn, with no state to keep.
    """
    mask = (1 << 64) - 1
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state + (part & mask) + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state >> 1


@dataclass(frozen=True)
class Between:
    """In the place of a seed: noise on the arc from the noise of one seed to that of another.

    ε = cos(πs/2)·ε_first + sin(πs/2)·ε_second is standard normal for every share s in [0, 1]; 0 is the first.
    """

    first: int
    second: int
    share: float


class ImageNoise:
    """Standard normal noise with one generator per image: image i depends only on its own seed.

    A call draws the next [B, *shape] block, image by image, always on the CPU (so that every device
    starts from the same noise), then moves it. Source: EDM's per-image seeding (2206.00364).
    """

    def __init__(self, seeds: Sequence[int | Between], device: torch.device | str = "cpu") -> None:
        self.terms = [_terms(seed) for seed in seeds]
        self.device = device

    def __len__(self) -> int:
        return len(self.terms)

    def __call__(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        noise = torch.stack([_normal(terms, shape, dtype) for terms in self.terms])
        return noise.to(self.device)


Term: TypeAlias = tuple[float, torch.Generator]


def _terms(seed: int | Between) -> list[Term]:
    """The noise of an image as a sum: factors and generators."""
    if not isinstance(seed, Between):
        return [(1.0, torch.Generator("cpu").manual_seed(int(seed)))]
    angle = math.pi / 2 * seed.share
    parts = ((math.cos(angle), seed.first), (math.sin(angle), seed.second))
    return [(factor, torch.Generator("cpu").manual_seed(int(number))) for factor, number in parts]


def _normal(terms: list[Term], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    blocks = [factor * torch.randn(*shape, generator=g, dtype=dtype) for factor, g in terms]
    return blocks[0] if len(blocks) == 1 else blocks[0] + blocks[1]


class SharedDropout:
    """The random state at the start of a network pass, so that a second pass draws the same dropout mask.

        mask = SharedDropout(device)
        f_t = model(...)
        with mask.again():
            f_r = target(...)

    After the second pass the global generators of the CPU and of the device stand where the first pass left
    them. The package uses the global generators nowhere else. Source: ECT, 2406.14548; iCT, 2310.14189.
    """

    def __init__(self, device: torch.device) -> None:
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._which = () if device.type in ("cpu", "mps") else (device,)  # there is one mps device
        self._before = self._states()

    def _states(self) -> tuple[Tensor, Tensor | None]:
        own = None if self._module is None else self._module.get_rng_state(*self._which)
        return torch.get_rng_state(), own

    def _set(self, states: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        if self._module is not None:
            self._module.set_rng_state(states[1], *self._which)

    @contextmanager
    def again(self) -> Iterator[None]:
        after = self._states()
        self._set(self._before)
        try:
            yield
        finally:
            self._set(after)
