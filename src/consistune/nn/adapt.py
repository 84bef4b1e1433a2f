"""A model for other labels than the one it starts from, with the same first output.

Tuning may condition on classes that the teacher did not know, or drop those it knew, and likewise
augmentation labels. Everything else is copied. What is new begins so that D(x; σ, any label) is the teacher's
D(x; σ) without a label; what is dropped takes its share with it:

- Song adds the class to the noise level's embedding with a bias, which acts without a class too: a dropped
  bias is folded into the next layer, b₀ ← b₀ + W₀·b.
- EDM2 mixes noise level and class with fixed shares, and its weights have no size that could begin at 0:
  a new class begins with share 0, which is learned, and the noise level keeps the share it had.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from consistune.nn import store
from consistune.nn.edm2 import EDM2UNet
from consistune.nn.precond import Preconditioned

LABELS = ("map_label", "map_augment", "emb_label")


@dataclass(frozen=True)
class Transfer:
    """A model, and the names of the parameters that are new in it or were left behind."""

    model: Preconditioned
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def transfer(model: Preconditioned, num_classes: int, augment_dim: int = 0) -> Transfer:
    """The model with so many classes and augmentation labels; itself where it has them already.

    Raises ValueError for augmentation labels in a network that knows none.
    """
    if (model.num_classes, getattr(model.network, "augment_dim", 0)) == (num_classes, augment_dim):
        return Transfer(model)
    config = store.describe(model)
    options: dict[str, Any] = config["network"]
    options["num_classes"] = num_classes
    if "augment_dim" in options:
        options["augment_dim"] = augment_dim
    elif augment_dim:
        raise ValueError(f"{type(model.network).__name__} knows no augmentation labels")
    if isinstance(model.network, EDM2UNet) and num_classes != model.num_classes:
        options["noise_gain"] = noise_share(model.network)
        if num_classes:
            options["label_balance"] = None
    made = store.build(config).to(next(model.parameters())).train(model.training)
    found = Transfer(made, *_copy(model.state_dict(), made.state_dict()))
    _fold_bias(model, made)
    return found


def noise_share(network: EDM2UNet) -> float:
    """The factor of the noise level in EDM2's embedding when no class is given."""
    if network.emb_label is None:
        return network.noise_gain
    t = float(network.label_balance)
    return network.noise_gain * (1 - t) / math.hypot(1 - t, t)


@torch.no_grad()
def _copy(old: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy what fits; begin the new with zero, EDM2's directions excepted. → (new, dropped)"""
    fits = {name for name, value in old.items() if name in own and own[name].shape == value.shape}
    for name, value in own.items():
        if name in fits:
            value.copy_(old[name])
        elif "emb_label" not in name:
            value.zero_()
    return [name for name in own if name not in fits], [name for name in old if name not in fits]


@torch.no_grad()
def _fold_bias(old: Preconditioned, made: Preconditioned) -> None:
    bias = getattr(getattr(old.network, "map_label", None), "bias", None)
    if bias is None or made.num_classes:
        return
    layer: Any = made.network.map_layer0
    layer.bias.copy_(layer.bias.double() + layer.weight.double() @ bias.double())
