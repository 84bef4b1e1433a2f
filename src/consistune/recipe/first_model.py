"""The model that a run begins with: a fresh network, or trained weights made to fit the recipe."""

from pathlib import Path
from typing import Any, cast

import torch

from consistune.data.images import DataSplit
from consistune.errors import UserError
from consistune.models import load
from consistune.nn import store
from consistune.nn.adapt import transfer
from consistune.nn.precond import EDMPrecond, Preconditioned
from consistune.recipe import Recipe, build
from consistune.train.augment import LABELS

SOURCES = {
    "edm-": "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained",
    "edm2-": "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions",
}
"""Where the files of these names were published, under CC BY-NC-SA 4.0."""


def first_model(recipe: Recipe, data: DataSplit) -> Preconditioned:
    """The model of a recipe; `meta["start_from"]` says where its weights came from.

    Raises UserError for keys that contradict each other, and weights that are missing or do not fit.
    """
    classes = len(data.train.class_names) if recipe.conditional else 0
    if (recipe.network is None) == (recipe.start_from is None):
        raise UserError(
            "a run needs either a network or weights to start from",
            "network, start_from",
            "give one of the two keys",
        )
    if recipe.start_from is not None:
        return _tuned(recipe, recipe.start_from, data, classes)
    torch.manual_seed(recipe.train.seed)
    section: Any = recipe.network
    network = build(section, "network", image_shape=data.train.image_shape, num_classes=classes)
    return _changed(recipe, _formed(recipe, network) or EDMPrecond(network))


def _tuned(recipe: Recipe, path: str, data: DataSplit, classes: int) -> Preconditioned:
    """Trained weights, made for the recipe's labels and options."""
    teacher = load_weights(path, "start_from")
    made, wanted = list(teacher.image_shape), list(data.train.image_shape)
    if made != wanted:
        raise UserError(f"the model makes images {made}, the data are {wanted}", "start_from")
    # Where training gives no augmentation labels, an embedding of them would be weights that nothing uses.
    told = getattr(recipe, "augment", 0) > 0
    found = transfer(teacher, classes, augment_dim=LABELS if told else 0)
    model = _changed(recipe, _formed(recipe, found.model.network) or found.model)
    kept = model.state_dict()
    dropped = [*found.dropped, *(name for name in found.model.state_dict() if name not in kept)]
    origin: dict[str, Any] = {"path": path, "new": found.new, "dropped": dropped}
    if "provenance" in teacher.meta:
        origin["provenance"] = teacher.meta["provenance"]
    model.meta = {"start_from": origin}
    return model


def _formed(recipe: Recipe, network: torch.nn.Module) -> Preconditioned | None:
    """The network in the recipe's preconditioning, where it names one."""
    section: Any = recipe.precond
    return None if section is None else cast(Preconditioned, build(section, "precond", network=network))


def load_weights(path: str, key: str, device: torch.device | str = "cpu") -> Preconditioned:
    """The model that a recipe's key names. Raises UserError, with where it comes from, if it is not there."""
    if not Path(path).exists():
        raise UserError(f"there is no {path}", key, _remedy(path))
    return load(path, device)


def _remedy(path: str) -> str:
    name, parts = Path(path).name, Path(path).parts
    if len(parts) > 1 and parts[0] == "runs":
        return f"train it first: consistune train {parts[1]}"
    for prefix, place in SOURCES.items():
        if name.startswith(prefix):
            return f"download {place}/{name}, or give another model's path"
    return "give a model's folder or a checkpoint's file"


def _changed(recipe: Recipe, model: Preconditioned) -> Preconditioned:
    """The model with the recipe's dropout, and without a log-variance head that its loss does not use."""
    config = store.describe(model)
    given = {"dropout": recipe.dropout, "dropout_res": recipe.dropout_res}
    for key, value in given.items():
        if value is not None and key not in config["network"]:
            raise UserError(f"{type(model.network).__name__} has no such option", key)
    network = {key: value for key, value in given.items() if value is not None}
    precond: dict[str, Any] = {}
    if "logvar_channels" in config["precond"] and not getattr(recipe, "uncertainty", False):
        precond["logvar_channels"] = 0
    if network.items() <= config["network"].items() and precond.items() <= config["precond"].items():
        return model
    config["network"] |= network
    config["precond"] |= precond
    made = store.build(config, "dropout").to(next(model.parameters())).train(model.training)
    weights = model.state_dict()
    made.load_state_dict({name: weights[name] for name in made.state_dict()})
    made.meta = model.meta
    return made
