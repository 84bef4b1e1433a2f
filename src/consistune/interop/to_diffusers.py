"""Models of one or a few steps out, as a pipeline's folder that the package diffusers loads."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.interop.pipelines import NOISE_SCALE
from consistune.nn import store
from consistune.nn.module import UNET, DenoiserPrecond
from consistune.nn.precond import EDMPrecond, Preconditioned
from consistune.nn.pretrained import need_diffusers

CODE, CODE_NAME = Path(__file__).with_name("few_steps.py"), "pipeline.py"
GRID = 40
"""The times between which a ConsistencyModelPipeline chooses its steps, as published."""


def write_pipeline(model: Preconditioned, dest: Path) -> None:
    """Write a model of one or a few steps as a folder of diffusers.

    A UNet2DModel of square colour images in consistency models' form (`nn.precond.EDMPrecond`, noise_scale
    1000: what `wrap` gives one) becomes a `ConsistencyModelPipeline`. Any other model becomes a
    `few_steps.FewStepsPipeline`, whose code lies in the folder: T = 80, then the card's `mid_t`. A network of
    ours in it is built by consistune, which must be installed where it is loaded; a UNet2DModel needs
    diffusers alone.

    Raises UserError for diffusion models, models of latents and two-time models, and without diffusers.
    """
    need_diffusers("--format diffusers")
    what = ""
    if model.card.is_diffusion:
        what = "is a diffusion model, not one of a few steps"
    elif model.card.latents is not None:
        what = "makes latents, which no pipeline of ours decodes"
    elif model.two_times:
        what = "has a network of two times, which diffusers does not have"
    if what:
        raise UserError(f"the model {what}", "--format diffusers", "tune it, or export NAME.onnx")
    partial = dest.with_name(f".{dest.name}.{os.getpid()}.partial")
    try:
        _pipeline(model.float().eval()).save_pretrained(partial)
        if not _has_their_form(model):
            (partial / CODE_NAME).write_text(_code(model), encoding="utf-8")
        partial.rename(dest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _code(model: Preconditioned) -> str:
    """The pipeline's code. With a network of ours it imports the class's module: diffusers alone does not."""
    code = CODE.read_text(encoding="utf-8")
    if _is_unet(model):
        return code
    found, line = "\nimport torch\n", "\nimport consistune.interop.diffusers_network  # the network's class"
    return code.replace(found, line + found, 1)


def _is_unet(model: Preconditioned) -> bool:
    return model.network.options.get("target") == UNET  # type: ignore[union-attr, operator]


def _has_their_form(model: Preconditioned) -> bool:
    channels, height, width = model.image_shape
    return (
        _is_unet(model)
        and channels == 3
        and height == width
        and isinstance(model, EDMPrecond)
        and not isinstance(model, DenoiserPrecond)
        and model.noise_scale == NOISE_SCALE
        and not model.card.edges
    )


def _pipeline(model: Preconditioned) -> Any:
    import diffusers

    if _has_their_form(model):
        form: Any = model
        scheduler = diffusers.CMStochasticIterativeScheduler(
            GRID, sigma_min=form.boundary, sigma_max=form.start, sigma_data=form.sigma_data
        )
        return diffusers.ConsistencyModelPipeline(_unet(model), scheduler)
    from consistune.interop.few_steps import FewStepsPipeline

    form = {"levels": _levels(model), "image_shape": model.image_shape, "classes": model.num_classes}
    return FewStepsPipeline(_unet(model) if _is_unet(model) else _network(model), json.dumps(form))


def _levels(model: Preconditioned) -> list[list[float]]:
    """(σ, c_skip, c_out, c_in, c_noise) of each step. A phased model makes one step."""
    sigma = torch.tensor([model.start, *([] if model.card.edges else model.card.mid_t)])
    with torch.no_grad():
        return torch.stack([sigma, *model.scalings(sigma)], 1).tolist()


def _unet(model: Preconditioned) -> Any:
    """The UNet2DModel, without the row of its embedding that stands for no label."""
    unet: Any = model.network.module
    if not model.num_classes or unet.class_embedding.num_embeddings == model.num_classes:
        return unet
    weights: dict[str, Tensor] = unet.state_dict()
    weights["class_embedding.weight"] = weights["class_embedding.weight"][: model.num_classes]
    cut = type(unet).from_config({**unet.config, "num_class_embeds": model.num_classes})
    cut.load_state_dict(weights)
    return cut.eval()


def _network(model: Preconditioned) -> Any:
    from consistune.interop.diffusers_network import Network

    made = Network(network=store.describe(model)["network"]).eval()
    made.inner.load_state_dict(model.network.state_dict())
    return made
