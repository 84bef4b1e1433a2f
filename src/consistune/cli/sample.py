"""`consistune sample`: draw images with a model."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from consistune.cli import options
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
        int | None, Option(help="Steps; default: 1, or 18 Heun steps for a diffusion model.")
    ] = None,
    classes: Annotated[
        str | None, Option(help="Class labels, assigned in turn by seed: 0-9, or 3; default: all.")
    ] = None,
    out: Annotated[
        Path, Option(help="NAME.png: a grid; NAME.npz: arrays; NAME: a folder of PNG files.")
    ] = Path("samples.png"),
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
    import torch

    from consistune import models
    from consistune.evaluate.settings import check_guidance, chosen_sampler

    chosen = options.pick_device(device)
    denoiser = _load(model, chosen, precision)
    numbers = options.parse_integers(seeds, "--seeds")
    labels = _labels(denoiser.num_classes, numbers, classes)
    _check_latents(latents, out)
    interval = options.parse_times(guidance_interval, "--guidance-interval") or (0.0, math.inf)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise UserError(f"{guidance_interval!r} is no interval", "--guidance-interval", "write LOW,HIGH")
    if guidance_interval is not None and guidance == 1.0:
        raise UserError("has no effect without guidance", "--guidance-interval", "give --guidance, too")
    sampler = chosen_sampler(denoiser, steps, options.parse_times(mid_t, "--mid-t"), eta)
    bad = _load(worse, chosen, precision) if worse else None
    check_guidance(denoiser, bad, guidance, "--guidance")
    with Screen() as screen, screen.bar("sampling", len(numbers)) as bar:
        images = models.sample(
            denoiser,
            numbers,
            condition=None if labels is None else torch.tensor(labels),
            sampler=sampler,
            guidance=guidance,
            guidance_interval=interval,
            worse=bad,
            batch=batch,
            progress=bar.advance,
            latents=latents,
        )
    write_images(out, images, numbers, labels)
    print(out)


def _load(folder: Path, device: "torch.device", precision: str) -> "Preconditioned":
    """A model in that precision ("": its own), in the memory format in which convolutions are fastest."""
    import torch

    from consistune.models import load

    model = load(folder, device)
    if precision:
        try:
            model.precision = precision  # type: ignore[assignment]
        except ValueError as error:
            raise UserError(str(error), "--precision") from error
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _check_latents(latents: bool, out: Path) -> None:
    if latents and out.suffix != ".npz":
        raise UserError(f"latents are no picture ({out})", "--latents", "write them with --out NAME.npz")


def _labels(num_classes: int, seeds: list[int], classes: str | None) -> list[int] | None:
    """The class of each seed; None for an unconditional model."""
    if num_classes == 0:
        if classes is not None:
            raise UserError("the model is unconditional", "--classes", "leave the option out")
        return None
    choices = options.parse_integers(classes, "--classes") if classes else list(range(num_classes))
    if min(choices) < 0 or max(choices) >= num_classes:
        raise UserError(
            f"{classes} is out of range", "--classes", f"the model's classes are 0 to {num_classes - 1}"
        )
    return [choices[seed % len(choices)] for seed in seeds]


def write_images(out: Path, images: "Tensor", seeds: list[int], labels: list[int] | None) -> None:
    """Write images [N, C, H, W], or fp32 latents as .npz, in the form that the name of `out` asks for.

    NAME.png: a grid. NAME.npz: arrays arr_0 [N, H, W, C], seeds [N] and, with labels, arr_1 [N].
    A name without a suffix: a folder with a PNG file per seed.
    """
    import numpy as np

    from consistune.pages.pictures import SMALLEST_SIDE, grid, save_png
    from consistune.system.files import atomic_file

    if out.suffix == ".npz":
        arrays = {"arr_0": images.permute(0, 2, 3, 1).contiguous().numpy(), "seeds": np.array(seeds)}
        if labels is not None:
            arrays["arr_1"] = np.array(labels)
        with atomic_file(out) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    elif out.suffix == ".png":
        save_png(out, grid(images), scale=max(1, SMALLEST_SIDE // images.shape[-1]))
    elif out.suffix:
        raise UserError(f"{out.suffix!r} is not known", "--out", "use .png, .npz, or a folder's name")
    else:
        for seed, image in zip(seeds, images, strict=True):
            save_png(out / f"{seed:06d}.png", image)
