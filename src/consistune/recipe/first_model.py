"""The model that a run begins with: a fresh network, or trained weights adapted to the recipe."""

from pathlib import Path
from typing import Any

import torch

from consistune.data.images import DataSplit
from consistune.errors import UserError
from consistune.models import load
from consistune.nn import store
from consistune.nn.adapt import adapt
from consistune.nn.card import ModelCard, Origin
from consistune.nn.precond import EDMPrecond, Preconditioned
from consistune.recipe import Recipe, build
from consistune.train.augment import LABELS

SOURCES = {
    "edm-": "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained",
    "edm2-": "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions",
}
"""Where the files whose names begin so were published, under CC BY-NC-SA 4.0."""


def first_model(recipe: Recipe, data: DataSplit) -> Preconditioned:
    """The model of a recipe; `card.start_from` names the weights that it starts from.

    Raises UserError for keys that contradict each other, and for weights that are missing or do not fit.
    """
    classes = len(data.train.class_names) if recipe.conditional else 0
    if (recipe.network is None) == (recipe.start_from is None):
        what = "a run needs either a network or weights to start from"
        raise UserError(what, "network, start_from", "give one of the two keys")
    network = {"dropout": recipe.dropout, "dropout_res": recipe.dropout_res}
    options: dict[str, Any] = {name: value for name, value in network.items() if value is not None}
    torch.manual_seed(recipe.train.seed)
    if recipe.start_from is None:
        model = _fresh(recipe, data.train.image_shape, classes)
        return adapt(model, _preconditioning(recipe, model), **options).model
    teacher = load_weights(recipe.start_from, "start_from")
    if teacher.image_shape != data.train.image_shape:
        shapes = list(teacher.image_shape), list(data.train.image_shape)
        raise UserError(f"the model makes images {shapes[0]}, the data are {shapes[1]}", "start_from")
    # Without augmentation in training, an embedding of its labels would be weights that nothing uses.
    options |= {"num_classes": classes, "augment_dim": LABELS if getattr(recipe, "augment", 0) else 0}
    adapted = adapt(teacher, _preconditioning(recipe, teacher), **options)
    origin: dict[str, Any] = {"path": recipe.start_from, "new": adapted.new, "dropped": adapted.dropped}
    if teacher.card.provenance is not None:
        origin["provenance"] = teacher.card.provenance
    adapted.model.card = ModelCard(start_from=Origin(**origin))
    return adapted.model


def _fresh(recipe: Recipe, image_shape: tuple[int, int, int], classes: int) -> Preconditioned:
    """The recipe's network in the recipe's preconditioning, EDM's by default."""
    section: Any = recipe.network
    network = build(section, "network", image_shape=image_shape, num_classes=classes)
    if "attn_resolutions" in section.model_fields_set:
        sides = [level.resolution for level in network.levels]
        if not set(section.attn_resolutions) <= set(sides):
            raise UserError(
                f"{list(section.attn_resolutions)}: the network's levels are {sides}",
                "network.attn_resolutions",
                "name some of these, or [] for no attention there",
            )
    form: Any = recipe.precond
    return EDMPrecond(network) if form is None else build(form, "precond", network=network)


def _preconditioning(recipe: Recipe, model: Preconditioned) -> dict[str, Any]:
    """The configuration of the recipe's preconditioning, by default the model's own.

    A log-variance head that the recipe's loss does not use is left out.
    """
    form: Any = recipe.precond
    config = store.describe(model)["precond"] if form is None else form.model_dump()
    if "logvar_channels" in config and not getattr(recipe, "uncertainty", False):
        config["logvar_channels"] = 0
    return config


def load_weights(path: str, key: str, device: torch.device | str = "cpu") -> Preconditioned:
    """The model that a recipe's key names. Raises UserError, with where to get it, if it is not there."""
    if not Path(path).exists():
        raise UserError(f"there is no {path}", key, _remedy(path))
    return load(path, device)


def _remedy(path: str) -> str:
    name, parts = Path(path).name, Path(path).parts
    if len(parts) > 1 and parts[0] == "runs":
        return f"train it first: consistune train {parts[1]}"
    for prefix, url in SOURCES.items():
        if name.startswith(prefix):
            return f"download {url}/{name}, or give another model's path"
    return "give a model's folder or a checkpoint's file"
