"""A trained model's weights in another form: other labels, options or preconditioning.

Tuning may condition on classes that the teacher did not know, or drop the classes that it knew; likewise for
augmentation labels. A flow map takes a second time. All other weights are copied. The adapted model begins
with D(x; σ, any label, any s) equal to the teacher's D(x; σ) without a label:

- A new embedding of labels, or of the second time, begins with zero.
- Song adds the class to the noise level's embedding with a bias, which acts without a class too. The bias of
  a dropped class embedding is therefore folded into the next layer: b₀ ← b₀ + W₀·b.
- EDM2 mixes noise level and class with fixed shares, and normalises its weights, so that they cannot begin
  with zero. A new class embedding begins with share 0, which is learned; the noise level keeps its share.
  The second time's begins with gain 0, which is learned.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.edm2 import EDM2UNet
from consistune.nn.module import ModuleNetwork
from consistune.nn.precond import Preconditioned


@dataclass(frozen=True)
class Adapted:
    """An adapted model, and the names of its parameters and buffers that are new or were left behind."""

    model: Preconditioned
    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


def adapt(model: Preconditioned, precond: dict[str, Any] | None = None, **network: Any) -> Adapted:
    """The model with other options; the model itself where it has them already.

    Args:
        precond: the configuration of another preconditioning, {"kind", …}; None: the model's own.
        network: the arguments of the network that change, such as num_classes, augment_dim and dropout.

    Raises UserError for an argument that the network does not have; augment_dim may be 0 for any network.
    """
    config = store.describe(model)
    options: dict[str, Any] = config["network"]
    if "augment_dim" not in options and network.get("augment_dim") == 0:
        del network["augment_dim"]
    for name in network:
        if name not in options:
            raise UserError(f"{type(model.network).__name__} has no such option", name)
    if options.get("second_time") and not network.get("second_time", True):
        raise UserError("a two-time network cannot lose its second time", "second_time", "leave it out")
    form = config["precond"] if precond is None else precond
    if network.items() <= options.items() and form == config["precond"]:
        return Adapted(model)
    if (
        isinstance(model.network, EDM2UNet)
        and network.get("num_classes", model.num_classes) != model.num_classes
    ):
        network["noise_gain"] = noise_share(model.network)
        if network["num_classes"]:
            network["label_balance"] = None
    own = model.network.module if isinstance(model.network, ModuleNetwork) else None
    again = None if own is None else lambda: copy.deepcopy(own)
    adapted = store.build({**config, "network": options | network, "precond": form}, network=again)
    adapted.to(next(model.parameters())).train(model.training)
    new, dropped = _copy_weights(model, adapted)
    _fold_bias(model, adapted)
    return Adapted(adapted, new, dropped)


def noise_share(network: EDM2UNet) -> float:
    """The factor of the noise level in EDM2's embedding when no class is given."""
    if network.emb_label is None:
        return network.noise_gain
    t = float(network.label_balance)
    return network.noise_gain * (1 - t) / math.hypot(1 - t, t)


@torch.no_grad()
def _copy_weights(old: Preconditioned, new: Preconditioned) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Copy what has the same name and shape → the names that are new, and those that were dropped.

    What is new in the network is set to zero, but for EDM2's embeddings of class and second time, which
    have a norm of their own.
    """
    given: dict[str, Tensor] = {
        name.replace(f"{old.network_name}.", f"{new.network_name}.", 1): value
        for name, value in old.state_dict().items()
    }
    own = new.state_dict()
    fitting = {name for name, value in given.items() if name in own and own[name].shape == value.shape}
    for name, value in own.items():
        if name in fitting:
            value.copy_(given[name])
        elif name.startswith(f"{new.network_name}.") and not {"emb_label", "emb_second"} & set(
            name.split(".")
        ):
            value.zero_()
    return tuple(n for n in own if n not in fitting), tuple(n for n in given if n not in fitting)


@torch.no_grad()
def _fold_bias(old: Preconditioned, new: Preconditioned) -> None:
    bias = getattr(getattr(old.network, "map_label", None), "bias", None)
    if bias is None or new.num_classes:
        return
    layer: Any = new.network.map_layer0
    layer.bias.copy_(layer.bias.double() + layer.weight.double() @ bias.double())
