"""Folders of diffusers in: a UNet2DModel, and the scheduler that says what it predicts, at which times."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistune.errors import UserError
from consistune.system.numbers import is_number

if TYPE_CHECKING:
    import torch

    from consistune.nn.module import ModuleNetwork
    from consistune.nn.precond import Preconditioned

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
UNET_CLASS, CONSISTENCY = "UNet2DModel", "CMStochasticIterativeScheduler"
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
NOISE_SCALE = 1000.0
"""Of consistency models' networks: their time step is 250·ln σ."""
ASSUMED = {"_class_name": "DDPMScheduler"}
LARGEST_SIDE = 8192
LICENCE = "the folder does not say; look where it was published"


def is_pipeline(folder: Path) -> bool:
    """Whether a folder is diffusers': it has a pipeline's index, or a model's config with a class."""
    if (folder / INDEX).is_file():
        return True
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "_class_name" in config


def load_pipeline(folder: Path) -> "Preconditioned":
    """The model in a folder of a pipeline, or of its UNet2DModel alone, in fp32 and in evaluation mode.

    Its scheduler gives the preconditioning: one with betas DDPM's (`nn.baselines.DDPMPrecond`; predictions ε
    and v), EDM's schedulers EDM's, ConsistencyModelPipeline's its own. A UNet alone is taken as DDPM's, of
    β = 1e-4 … 0.02 and ε, which `card.assumed` says. Clipping and thresholding while sampling are left out.

    Nothing in the folder is executed. Raises UserError for other networks and schedulers, for a pipeline that
    has none (`few_steps`), for weights that are no safetensors, and without the package diffusers.
    """
    from consistune.nn.pretrained import WEIGHTS, pretrained
    from consistune.system.files import file_digest, read_json

    place = next((path for path in (folder / "unet", folder) if (path / CONFIG).is_file()), folder)
    if (place / CONFIG).is_file() and not (place / WEIGHTS).is_file():
        remedy = f'in Python: {UNET_CLASS}.from_pretrained("…").save_pretrained("…") writes it'
        raise UserError(f"there is no {WEIGHTS}", str(place), remedy)
    unet = pretrained(place, (UNET_CLASS,), "an image network")
    whole = folder.parent if folder.name == "unet" else folder
    places = (folder / "scheduler", folder, whole / "scheduler")
    found = next((path / SCHEDULER for path in places if (path / SCHEDULER).is_file()), None)
    if found is None and (whole / INDEX).is_file():
        what = "a pipeline without a scheduler does not say what its network predicts"
        raise UserError(what, str(whole), "give the model that it was exported from")
    scheduler = ASSUMED if found is None else read_json(found)
    model = _preconditioned(_network(unet, str(place)), scheduler, str(folder))
    name = scheduler["_class_name"]
    provenance = {
        "file": folder.name,
        "sha256": file_digest(place / WEIGHTS),
        "format": f"diffusers, {name}",
        "class": UNET_CLASS,
        "dropped": ["clipping of samples"] if scheduler.get("clip_sample") else [],
        "licence": LICENCE,
    }
    consistent = name == CONSISTENCY
    model.card = model.card.updated(
        objective="consistency" if consistent else "diffusion", provenance=provenance, label_dropout=0.0
    )
    if found is None:
        model.card = model.card.updated(assumed=["DDPM's schedule, β = 1e-4 … 0.02, prediction of ε"])
    return model.eval()


def _network(unet: Any, where: str) -> "ModuleNetwork":
    from consistune.nn.module import UNET, ModuleNetwork, plain_config

    config = unet.config
    size = config.sample_size
    sides = [size, size] if isinstance(size, int) else size
    if not (isinstance(sides, list | tuple) and len(sides) == 2 and all(_is_side(side) for side in sides)):
        remedy = 'write "sample_size", a whole number, into its config.json'
        raise UserError(f"does not say how large its images are: sample_size is {size!a}", where, remedy)
    if config.class_embed_type is not None or config.time_embedding_type == "learned":
        what = "embeds labels, or times by a table" if config.class_embed_type is None else "embeds labels"
        raise UserError(f"the network {what} in a form that consistune does not know", where)
    height, width = sides
    network = ModuleNetwork(
        UNET,
        plain_config(config),
        (config.in_channels, height, width),
        config.num_class_embeds or 0,
        "index",
        unet,
    )
    _try(network, where)
    return network


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def _try(network: "ModuleNetwork", where: str) -> None:
    """Raises UserError where the network cannot be called as its config.json says; nothing is computed."""
    import torch

    from consistune.nn.pretrained import check_call, without_memory

    tried, shape, classes = without_memory(network), (1, *network.image_shape), network.num_classes
    with torch.device("meta"):
        labels = torch.zeros(1, classes) if classes else None
        check_call(lambda: tried(torch.zeros(shape), torch.zeros(1), labels), shape, where)


def _preconditioned(network: "ModuleNetwork", scheduler: dict[str, Any], where: str) -> "Preconditioned":
    from consistune.nn.precond import CMPrecond, EDMPrecond

    name, known = scheduler.get("_class_name"), scheduler.get("prediction_type", "epsilon")
    if name == CONSISTENCY:
        sigmas: dict[str, Any] = {
            key: _sigma(scheduler, key, where) for key in ("sigma_data", "sigma_min", "sigma_max")
        }
        if sigmas["sigma_min"] >= sigmas["sigma_max"]:
            raise UserError("sigma_min is not below sigma_max", where)
        return CMPrecond(network, **sigmas, noise_scale=NOISE_SCALE)
    if name in EDM_SCHEDULERS and known == "epsilon":
        return EDMPrecond(network, _sigma(scheduler, "sigma_data", where))
    if known not in ("epsilon", "v_prediction") or name in EDM_SCHEDULERS:
        what = f"a network of {name!a} that predicts {known!a} is not known"
        raise UserError(what, where, "known are epsilon and v_prediction, and EDM's with epsilon")
    from consistune.nn.baselines import DDPMPrecond

    levels = _levels(scheduler, where)
    model = DDPMPrecond(network, known, len(levels))
    model.levels.copy_(levels)
    return model


def _sigma(scheduler: dict[str, Any], key: str, where: str) -> float:
    value: Any = scheduler.get(key)
    may_be_zero = key == "sigma_min"
    if not is_number(value) or not 0 <= value < math.inf or (value == 0 and not may_be_zero):
        raise UserError(f"{key} is {value!a}, not a number above 0", f"{where}: {SCHEDULER}")
    return float(value)


def _levels(scheduler: dict[str, Any], where: str) -> "torch.Tensor":
    """The finite σ_n = √((1 − ᾱ_n)/ᾱ_n), from the ᾱ of diffusers' own scheduler, rising."""
    from consistune.nn.pretrained import need_diffusers

    name = str(scheduler.get("_class_name"))
    kind = getattr(need_diffusers(where), name, None) if name.endswith("Scheduler") else None
    try:
        alpha_bar = None if kind is None else getattr(kind.from_config(scheduler), "alphas_cumprod", None)
    except Exception as error:  # diffusers raises errors of many kinds for wrong values
        raise UserError(f"{name!a}: {' '.join(str(error).split())[:120]}", where) from error
    if alpha_bar is None:
        remedy = f"known are those with betas (DDPM, DDIM, …), {', '.join(EDM_SCHEDULERS)} and {CONSISTENCY}"
        raise UserError(f"the scheduler {name!a} is not known", where, remedy)
    sigma = ((1 - alpha_bar.double()) / alpha_bar.double()).sqrt().float()
    sigma = sigma[sigma.isfinite()]
    if len(sigma) < 2 or sigma[0] <= 0 or not bool((sigma.diff() > 0).all()):
        raise UserError("the scheduler's noise levels do not rise from above 0", where)
    return sigma
