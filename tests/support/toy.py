"""What the parity fixtures hold, by name, and their small network in float64: parity/README.md."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consistune.core.types import Condition
from tests.conftest import PARITY

LEAST_SIZE = 1e-3
"""Numbers below it are compared as if they were this large: what is 0 but for rounding is 0."""


def fixtures(pattern: str) -> list[str]:
    """The fixtures of such paths, for parametrize: "ect/ect_generator_*" → ["ect/ect_generator_…"].

    The pattern itself where there is none, as in `entries`.
    """
    found = sorted(str(path.relative_to(PARITY).with_suffix("")) for path in PARITY.glob(f"{pattern}.npz"))
    return found or [pattern]


def keys(fixture: str) -> list[str]:
    """The names of a fixture's arrays; none where it is not there."""
    path = PARITY / f"{fixture}.npz"
    if not path.is_file():
        return []
    with np.load(path) as archive:
        return list(archive.files)


def entries(fixture: str, pattern: str) -> list[str]:
    """What a pattern's first group is in a fixture's keys, each once, for parametrize.

    The pattern itself where no key matches: a test of that name is skipped without the folder of fixtures,
    and fails with it.
    """
    found = (re.fullmatch(pattern, key) for key in keys(fixture))
    return list(dict.fromkeys(match[1] for match in found if match)) or [pattern]


def named(arrays: Iterable[str], pattern: str) -> list[re.Match[str]]:
    """The names that match a pattern, with their groups. There must be one."""
    found = [match for name in arrays if (match := re.fullmatch(pattern, name))]
    assert found, f"no entry is named {pattern}"
    return found


class Toy(nn.Module):
    """out = W2·tanh(W1·x + Wt·emb(s) [+ Wr·emb(q)] [+ Wl[label]] [+ We·extra] + b1) + b2, from a fixture.

    The last row of Wl is the null label where `null` is set.
    """

    def __init__(self, arrays: Mapping[str, Tensor], prefix: str = "net_", null: int | None = None) -> None:
        super().__init__()
        for name, value in arrays.items():
            if name.startswith(prefix):
                short = name.removeprefix(prefix)
                setattr(self, short, nn.Parameter(value.clone(), requires_grad=short != "freqs"))
        self.null = null

    def embedding(self, u: Tensor) -> Tensor:
        angle = u[:, None] * self.freqs
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    def labels(self, condition: Tensor | Condition | None, batch: int) -> Tensor | None:
        """The row of Wl for each sample; None: the network takes no label."""
        if not hasattr(self, "Wl"):
            return None
        given = condition if isinstance(condition, Condition) else Condition(condition)
        if given.label is None:
            return None if self.null is None else torch.full((batch,), self.null)
        if given.hidden is None:
            return given.label
        return torch.where(given.hidden, self.null, given.label)

    def hidden_layer(
        self, x: Tensor, s: Tensor, label: Tensor | None, q: Tensor | None = None, extra: Tensor | None = None
    ) -> Tensor:
        h = x.flatten(1) @ self.W1.T + self.embedding(s) @ self.Wt.T + self.b1
        if q is not None:
            h = h + self.embedding(q) @ self.Wr.T
        if label is not None:
            h = h + self.Wl[label]
        if extra is not None:
            h = h + extra @ self.We.T
        return torch.tanh(h)

    def out(self, h: Tensor, like: Tensor) -> Tensor:
        return (h @ self.W2.T + self.b2).view_as(like)


class ToyDenoiser(Toy):
    """The toy inside EDM's preconditioning, with its log variance."""

    def __init__(self, arrays: Mapping[str, Tensor], prefix: str = "net_", null: int | None = None) -> None:
        super().__init__(arrays, prefix, null)
        self.sigma_data = float(arrays.get("sigma_data", 0.5))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | Condition | None = None) -> Tensor:
        variance = sigma.square() + self.sigma_data**2
        c_in = variance.rsqrt()
        u = sigma.log() / 4
        scaled = c_in.view(-1, 1, 1, 1) * x
        raw = self.out(self.hidden_layer(scaled, u, self.labels(condition, len(x))), x)
        c_skip, c_out = self.sigma_data**2 / variance, sigma * self.sigma_data * c_in
        return c_skip.view(-1, 1, 1, 1) * x + c_out.view(-1, 1, 1, 1) * raw

    def log_variance(self, sigma: Tensor) -> Tensor:
        return self.embedding(sigma.log() / 4) @ self.wv + self.bv


def gradients(network: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """grad_NAME → the gradient of a scalar loss by each weight; 0 where it does not depend on it."""
    network.zero_grad()
    loss.backward()
    return {
        f"grad_{name}": torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in network.named_parameters()
        if p.requires_grad
    }


def close(found: Tensor, expected: Tensor, relative: float = 1e-12, name: str = "") -> None:
    """Equal to `relative` of the array's largest value, or of `LEAST_SIZE`; an array may be empty."""
    assert found.shape == expected.shape, name
    expected = expected.double()
    size = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        found.detach().double(),
        expected,
        rtol=0,
        atol=relative * max(size, LEAST_SIZE),
        msg=lambda text: f"{name}: {text}",
    )


def settings(arrays: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """A variant's "name=value" → the values, as numbers where they are."""
    pairs = (str(word).split("=") for word in arrays[f"{variant}.settings"])
    return {name: number(value) for name, value in pairs}


def number(word: str) -> float | str:
    """The number that a word spells; the word itself where it is none."""
    try:
        return float(word)
    except ValueError:
        return word


def of_variant(arrays: Mapping[str, Any], variant: str, kind: str = "") -> dict[str, Tensor]:
    """A variant's arrays in float64, or of the kind `_f32`, by their short names; without its settings."""
    arrays = {k.removeprefix(f"{variant}."): v for k, v in arrays.items() if k.startswith(f"{variant}.")}
    assert arrays, f"there is no variant {variant}"
    arrays = {k: v for k, v in arrays.items() if k != "settings" and k.endswith("_f32") == bool(kind)}
    return {k.removesuffix(kind): v for k, v in arrays.items()}


def in_float32(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays, those in float64 rounded."""
    return {k: v.float() if getattr(v, "dtype", None) == torch.float64 else v for k, v in arrays.items()}


def compare(
    stored: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    relative: float = 1e-12,
    given: Collection[str] = (),
) -> None:
    """Every stored array is equal to the found one of its name, but those that were `given` to the step."""
    assert stored.keys() - found.keys() <= set(given)
    for name in stored.keys() & found.keys():
        close(found[name], stored[name], relative, name)


class ToyVelocity(Toy):
    """The toy as a velocity u(x, t, t − r) of rectified flow, seen as the two-time denoiser x_t − t·u."""

    two_times = True

    def velocity(
        self, x: Tensor, t: Tensor, r: Tensor, condition: Tensor | Condition | None = None
    ) -> Tensor:
        return self.out(self.hidden_layer(x, t, self.labels(condition, len(x)), t - r), x)

    def forward(
        self, x: Tensor, t: Tensor, condition: Tensor | Condition | None = None, s: Tensor | None = None
    ) -> Tensor:
        return x - t.view(-1, 1, 1, 1) * self.velocity(x, t, t if s is None else s, condition)
