"""The model that a run begins with: a fresh network, or trained weights adapted to the recipe."""

import shlex
from pathlib import Path
from typing import Any, cast

import torch

from consistune.data.images import DataSplit
from consistune.data.sources.labels import brief
from consistune.errors import UserError
from consistune.models import find, load
from consistune.nn import store
from consistune.nn.adapt import adapt
from consistune.nn.autoencoder.space import from_model
from consistune.nn.card import ModelCard, Origin
from consistune.nn.module import ModuleNetwork
from consistune.nn.precond import EDMPrecond, Preconditioned, evaluating
from consistune.recipe import Recipe, build
from consistune.recipe.ranges import check_memory, weight_bytes
from consistune.recipe.reading import shipped_recipes
from consistune.training.augment import LABELS

SOURCES = {
    "edm-": "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained",
    "edm2-": "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions",
}
"""Where the files whose names begin so were published, under CC BY-NC-SA 4.0."""


def first_model(
    recipe: Recipe, data: DataSplit, given: Preconditioned | None = None, *, two_times: bool
) -> Preconditioned:
    """The model of a recipe, or `given` adapted to it; `card.start_from` names trained weights.

    two_times: the network must take a second time.

    Raises UserError for keys that contradict each other, and for weights that are missing or do not fit.
    """
    classes = len(data.train.class_names) if recipe.conditional else 0
    sources = (recipe.network, recipe.start_from, given)
    if sum(source is not None for source in sources) != 1:
        what = "a run needs either a network or weights to start from"
        raise UserError(what, "network, start_from", "give one of the two keys")
    network = {"dropout": recipe.dropout, "dropout_res": recipe.dropout_res}
    options: dict[str, Any] = {name: value for name, value in network.items() if value is not None}
    torch.manual_seed(recipe.train.seed)
    if recipe.network is not None:
        model = _fresh(recipe, data.train.image_shape, classes)
        if two_times and not model.two_times:
            raise UserError(
                f"{recipe.objective} needs a network that takes a second time",
                "network",
                "add second_time: true (a network of your own: see Preconditioned)",
            )
        return adapt(model, _preconditioning(recipe, model), **options).model
    teacher = given or load_weights(str(recipe.start_from), "start_from")
    check_space(teacher, data, "start_from")
    if teacher.image_shape != data.train.image_shape:
        shapes = list(teacher.image_shape), list(data.train.image_shape)
        raise UserError(f"the model makes images {shapes[0]}, the data are {shapes[1]}", "start_from")
    check_class_order(teacher, data, classes, "start_from")
    _check_own_classes(teacher, classes)
    # Without augmentation in training, an embedding of its labels would be weights that nothing uses.
    options |= {"num_classes": classes, "augment_dim": LABELS if getattr(recipe, "augment", 0) else 0}
    if two_times and not teacher.two_times:
        if isinstance(teacher.network, ModuleNetwork):
            what = f"{recipe.objective} needs a network that takes a second time, and yours takes one time"
            raise UserError(what, "network", "use a method of one time, such as sct, or a network of ours")
        options["second_time"] = True
    adapted = adapt(teacher, _preconditioning(recipe, teacher), **options)
    if given is not None and given.card.objective is None:
        return adapted.model  # its weights are fresh
    path = recipe.start_from or "a model in memory"
    origin: dict[str, Any] = {"path": path, "new": adapted.new, "dropped": adapted.dropped}
    if teacher.card.source is not None:
        origin["provenance"] = teacher.card.source
    adapted.model.card = ModelCard(start_from=Origin(**origin))
    return adapted.model


def check_class_order(model: Preconditioned, data: DataSplit, classes: int, key: str) -> None:
    """Raises UserError where a model knows the same classes in another order, which would mix them up."""
    known, own = list(model.card.class_names), list(data.train.class_names)
    if classes and known != own and sorted(known) == sorted(own):
        what = f"the model's classes are {brief(known)}, the data's {brief(own)}"
        raise UserError(what, key, "prepare the data with the classes in the model's order")


def _check_own_classes(teacher: Preconditioned, classes: int) -> None:
    """Raises UserError where a network that is not ours cannot have the run's classes; 0: none."""
    known, network = teacher.num_classes, teacher.network
    if not isinstance(network, ModuleNetwork) or classes == known:
        return
    if not known:
        what = f"the network was wrapped without labels, and the run has {classes} classes"
        raise UserError(what, "conditional", f"wrap it with num_classes={classes}, or use conditional=False")
    if classes or not _runs_without_labels(teacher):
        what = f"the network was wrapped with {known} classes, and the run has {classes or 'no'} classes"
        raise UserError(what, "conditional", f"give labels of {known} classes, or train another network")


def _runs_without_labels(model: Preconditioned) -> bool:
    """Whether a network that is not ours, trained with labels, can be called without."""
    weight, network = next(model.parameters()), cast(ModuleNetwork, model.network)
    x = torch.zeros(2, *model.image_shape, device=weight.device, dtype=model.dtype)
    with evaluating(model), torch.no_grad():
        try:
            network.module(x, x.new_ones(2))
        except Exception:  # whatever a module fails for that misses its labels
            return False
    return True


def _fresh(recipe: Recipe, image_shape: tuple[int, int, int], classes: int) -> Preconditioned:
    """The recipe's network in the recipe's preconditioning, EDM's by default."""
    section: Any = recipe.network
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # nothing is allocated
        planned = build(section, "network", image_shape=image_shape, num_classes=classes)
    check_memory("it", weight_bytes(planned), "network")
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


def check_space(model: Preconditioned, data: DataSplit, key: str) -> None:
    """Raises UserError unless model and data are both of pictures, or of the same latents."""
    known = from_model(model)
    if known is None and model.card.objective is None:
        return  # nothing is known of it
    if data.train.latents is not None:
        data.train.latents.check_same_space(known, f"data {data.train.name}, {key}")
    elif known is not None:
        what = f"the model makes latents of {known.autoencoder}, the data are pictures"
        raise UserError(what, key, "prepare the data with --latents, or use a model of pictures")


def load_weights(path: str, key: str) -> Preconditioned:
    """The model, on the CPU, of a recipe's key. Raises UserError, with where to get it, if there is none."""
    if not find(path).exists():
        raise UserError(f"there is no {path}", key, _remedy(path))
    return load(path)


def _remedy(path: str) -> str:
    name, parts = Path(path).name, Path(path).parts
    if (Path(path).parent / "recipe.yaml").is_file():
        return f"finish its training: consistune train {shlex.quote(str(Path(path).parent))} --resume"
    if len(parts) > 1 and parts[0] == "runs":
        run = Path(*parts[:2])
        own = Path(f"{parts[1]}.yaml")
        if own.is_file() or parts[1] in shipped_recipes():
            return f"train it first: consistune train {shlex.quote(str(own if own.is_file() else parts[1]))}"
        return f"train it first: consistune train RECIPE --out {shlex.quote(str(run))}"
    for prefix, url in SOURCES.items():
        if name.startswith(prefix):
            return f"download {url}/{name}, or give another model's path"
    return "give a model's folder or a checkpoint's file"
