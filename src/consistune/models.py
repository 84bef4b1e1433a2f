"""Load a model from any form; sample images from it. A seed's image does not depend on what else is drawn."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from consistune.core.guidance import Guided
from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.objectives import learned
from consistune.core.posterior.mean import quantise
from consistune.core.rng import ImageNoise
from consistune.core.sampling import ODE, Multistep, PhasedSteps, Sampler
from consistune.core.types import Denoiser
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.pages.pictures import SMALLEST_SIDE, grid, save_png


def load(path: str | Path, device: torch.device | str = "cpu") -> Preconditioned:
    """The model in a folder (`nn.store`), a run's folder, or an official checkpoint (`interop.checkpoints`).

    In evaluation mode. Raises UserError for anything that is none of them; nothing in it is executed.
    """
    if Path(path).is_file():
        from consistune.interop.checkpoints import load_checkpoint

        return load_checkpoint(path).to(device)
    return store.load(path, device)


DIFFUSION_STEPS = 18
"""Heun steps of a diffusion model by default: 35 evaluations, EDM's choice for CIFAR-10."""


def default_sampler(
    model: Preconditioned, steps: int | None, mid_t: Iterable[float] | None = None, eta: float = 1.0
) -> Sampler:
    """The sampler a model was made for, in a number of steps (None: the model's own number).

    A diffusion model takes Heun steps; a phased model goes edge to edge, with edge-skipping η; a plain
    consistency model takes one step or re-noises to `mid_t` (by default, where its training said).
    Raises ValueError where the steps and the model do not fit.
    """
    meta = model.meta
    if learned(meta) == "denoiser":
        return ODE(steps=DIFFUSION_STEPS if steps is None else steps)
    edges = tuple(float(edge) for edge in _list(meta.get("edges")))
    if edges:
        if steps not in (None, 1, len(edges) + 1):
            raise ValueError(f"this model has {len(edges) + 1} phases: steps must be 1 or {len(edges) + 1}")
        return PhasedSteps(edges, eta=0.0 if steps == 1 else eta)
    middle = tuple(mid_t) if mid_t is not None else tuple(float(t) for t in _list(meta.get("mid_t")))
    wanted = (steps or 1) - 1
    if len(middle) < wanted:
        raise ValueError(f"{wanted + 1} steps need {wanted} times between; {len(middle)} known: give mid_t")
    return Multistep(middle[:wanted])


def _list(value: object) -> list[float]:
    return list(value) if isinstance(value, list | tuple) else []


@torch.no_grad()
def sample(
    model: Preconditioned,
    seeds: Iterable[int],
    steps: int | None = 1,
    condition: Tensor | int | None = None,
    *,
    sampler: Sampler | None = None,
    guidance: float = 1.0,
    worse: Denoiser | None = None,
    guidance_interval: tuple[float, float] = (0.0, math.inf),
    mid_t: Iterable[float] | None = None,
    eta: float = 1.0,
    batch: int = 256,
    schedule: NoiseSchedule | None = None,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw one image a seed.

    Args:
        steps: network evaluations of a consistency model, Heun steps of a diffusion model; None: the
            model's own number.
        condition: a class label for all, or labels [N]; None: unconditional, or for a class-conditional
            model the classes in turn (seed modulo number of classes).
        guidance, worse: f_bad + ω·(f − f_bad); f_bad is another model, or None for the unlabelled branch.
        guidance_interval: guidance acts where low < t ≤ high.
        mid_t: times of the second and later steps.
        batch: images at a time; memory, not results, depends on it.
        progress: called with the number of images done.

    Returns:
        uint8 images [N, C, H, W].
    """
    seeds = list(seeds)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    labels = _labels(model, seeds, condition, device)
    sampler = sampler or default_sampler(model, steps, mid_t, eta)
    denoiser = Guided(model, worse, guidance, *guidance_interval) if guidance != 1.0 else model
    images = []
    for start in range(0, len(seeds), batch):
        part = slice(start, start + batch)
        noise = ImageNoise(seeds[part], device)
        x = sampler(
            denoiser,
            schedule or EDM(),
            noise,
            model.image_shape,
            None if labels is None else labels[part],
        )
        images.append(quantise(x).cpu())
        if progress is not None:
            progress(len(seeds[part]))
    model.train(training)
    if not images:
        return torch.empty(0, *model.image_shape, dtype=torch.uint8)
    return torch.cat(images)


def draw_sheet(model: Preconditioned, path: Path) -> None:
    """A picture of 64 samples at fixed seeds, drawn as the model is meant to be."""
    images = sample(model, range(64), steps=None)
    save_png(path, grid(images), scale=max(1, SMALLEST_SIDE // images.shape[-1]))


def _labels(
    model: Preconditioned, seeds: list[int], condition: Tensor | int | None, device: torch.device
) -> Tensor | None:
    if condition is None:
        if model.num_classes == 0:
            return None
        return torch.tensor([seed % model.num_classes for seed in seeds], device=device)
    labels = torch.as_tensor(condition, device=device)
    if labels.ndim == 0:
        labels = labels.expand(len(seeds))
    if len(labels) != len(seeds):
        raise ValueError(f"{len(labels)} conditions for {len(seeds)} seeds")
    return labels
