"""`consistune sample`: draw images with a model."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from consistune.cli import images_out, options
from consistune.cli.screen import Screen
from consistune.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from consistune.nn.precond import Preconditioned


def sample(
    model: options.ModelFolder,
    seeds: Annotated[str, Option(help="Seeds, one image each: 0-63, or 1,5,8-11.")] = "0-63",
    steps: Annotated[
        int | None,
        Option(help="Steps; default: 1, all phases of a phased model, 18 Heun steps of a diffusion model."),
    ] = None,
    classes: Annotated[
        str | None, Option(help="Class labels, assigned in turn by seed: 0-9, or 3; default: all.")
    ] = None,
    out: Annotated[
        Path, Option(help="NAME.png: a grid; NAME.npz: arrays; NAME: a folder of PNG files.")
    ] = Path("samples.png"),
    format: Annotated[str | None, Option(help="png, npz or folder; default: by --out.")] = None,
    at: Annotated[
        str | None, Option(help="latest: the newest checkpoint of a run that is not finished.")
    ] = None,
    mid_t: options.MiddleTimes = None,
    eta: options.Eta = None,
    guidance: options.GuidanceWeight = 1.0,
    worse: options.WorseModel = None,
    guidance_interval: options.GuidanceInterval = None,
    batch: options.BatchSize = 256,
    latents: options.RawLatents = False,
    precision: Annotated[str, Option(help="fp32, bf16 or fp16; default: the model's own.")] = "",
    device: options.Device = "auto",
) -> None:
    """Draw images, one per seed: a seed gives the same image, whatever else is drawn with it."""
    from consistune import models
    from consistune.evaluation.settings import check_guidance, check_interval, chosen_sampler

    chosen = options.pick_device(device)
    numbers = images_out.Seeds(options.parse_ranges(seeds, "--seeds"))
    form = images_out.format_of(out, format)
    images_out.check_out(out, form, numbers)
    if latents and form != "npz":
        raise UserError(f"latents are no picture ({out})", "--latents", "write them with --out NAME.npz")
    denoiser = _load(model, chosen, precision, at)
    choices = _classes(denoiser.num_classes, classes)
    sampler = chosen_sampler(denoiser, steps, options.parse_times(mid_t, "--mid-t"), eta)
    bad = _load(worse, chosen, precision) if worse else None
    check_guidance(denoiser, bad, guidance, "--guidance")
    interval = _interval(guidance_interval, guidance)
    check_interval(sampler, interval, "--guidance-interval")
    draw = partial(
        models.sample,
        denoiser,
        sampler=sampler,
        guidance=guidance,
        guidance_interval=interval,
        worse=bad,
        batch=batch,
        latents=latents,
    )
    shape = denoiser.image_shape if latents else models.picture_shape(denoiser)
    with images_out.opened(out, form, numbers, shape, choices is not None, latents) as writer:
        _draw_all(draw, numbers.batches(batch), len(numbers), choices, writer)
    print(out)


def _draw_all(
    draw: Callable[..., "Tensor"],
    parts: Iterable[list[int]],
    count: int,
    choices: list[int] | None,
    writer: images_out.Writer,
) -> None:
    """Draw the images of each part of the seeds, with their classes in turn, and hand them on."""
    import torch

    with Screen() as screen, screen.bar("sampling", count) as bar:
        for part in parts:
            labels = [choices[seed % len(choices)] for seed in part] if choices is not None else None
            condition = None if labels is None else torch.tensor(labels)
            writer.write(draw(part, condition=condition, progress=bar.advance), part, labels)


def _interval(text: str | None, guidance: float) -> tuple[float, float]:
    interval = options.parse_times(text, "--guidance-interval") or (0.0, math.inf)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise UserError(f"{text!r} is no interval", "--guidance-interval", "write LOW,HIGH")
    if text is not None and guidance == 1.0:
        raise UserError("has no effect without guidance", "--guidance-interval", "give --guidance, too")
    return interval[0], interval[1]


def _load(folder: Path, device: "torch.device", precision: str, at: str | None = None) -> "Preconditioned":
    """A model in that precision ("": its own), in the memory format in which convolutions are fastest."""
    import torch

    from consistune.models import load
    from consistune.training.latest import load_latest

    options.check_choice(at, ("latest",), "--at")
    model = load(folder, device) if at is None else load_latest(folder).to(device)
    if precision:
        try:
            model.precision = precision  # type: ignore[assignment]
        except ValueError as error:
            raise UserError(str(error), "--precision") from error
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _classes(num_classes: int, classes: str | None) -> list[int] | None:
    """The classes that are assigned in turn; None for an unconditional model."""
    if num_classes == 0:
        if classes is not None:
            raise UserError("the model is unconditional", "--classes", "leave the option out")
        return None
    ranges = options.parse_ranges(classes, "--classes") if classes is not None else [range(num_classes)]
    if any(part[-1] >= num_classes for part in ranges):
        raise UserError(
            f"{classes} is out of range", "--classes", f"the model's classes are 0 to {num_classes - 1}"
        )
    return [label for part in ranges for label in part]
