"""consistune sample"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from consistune.cli.common import Screen, parse_integers, parse_times, pick_device
from consistune.errors import UserError
from consistune.models import default_sampler, load
from consistune.models import sample as draw
from consistune.nn.precond import Preconditioned
from consistune.pages.pictures import SMALLEST_SIDE, grid, save_png
from consistune.system.files import atomic_file


def sample(
    folder: Path,
    seeds_text: str,
    steps: int | None,
    classes: str | None,
    out: Path,
    mid_t: str | None,
    eta: float,
    guidance: float,
    worse: Path | None,
    guidance_interval: str | None,
    batch: int,
    precision: str,
    device: str,
) -> None:
    """Draw and write images. Raises UserError for what does not fit the model."""
    place = pick_device(device)
    model = ready(load(folder, place), precision)
    seeds = parse_integers(seeds_text, "--seeds")
    labels = _labels(model, seeds, classes)
    if batch < 1:
        raise UserError(f"{batch} images at a time", "--batch", "use at least 1")
    if worse is None and guidance != 1.0 and not model.num_classes:
        raise UserError("an unconditional model has no unlabelled branch", "--guidance", "give --worse")
    interval = parse_times(guidance_interval, "--guidance-interval") or (0.0, math.inf)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise UserError(f"{guidance_interval!r} is no interval", "--guidance-interval", "write LOW,HIGH")
    try:
        sampler = default_sampler(model, steps, parse_times(mid_t, "--mid-t"), eta)
    except ValueError as error:
        raise UserError(str(error), "--steps") from error
    with Screen() as screen, screen.bar("sampling", len(seeds)) as bar:
        images = draw(
            model,
            seeds,
            condition=labels,
            sampler=sampler,
            guidance=guidance,
            guidance_interval=interval,
            worse=ready(load(worse, place), precision) if worse else None,
            batch=batch,
            progress=bar.advance,
        )
    write_images(out, images, seeds, labels)
    print(out)


def _labels(model: Preconditioned, seeds: list[int], classes: str | None) -> Tensor | None:
    if model.num_classes == 0:
        if classes is not None:
            raise UserError("the model is unconditional", "--classes", "leave the option out")
        return None
    wanted = parse_integers(classes, "--classes") if classes else list(range(model.num_classes))
    if min(wanted) < 0 or max(wanted) >= model.num_classes:
        raise UserError(
            f"{classes} is out of range", "--classes", f"the model's classes are 0 to {model.num_classes - 1}"
        )
    return torch.tensor([wanted[seed % len(wanted)] for seed in seeds])


def write_images(out: Path, images: Tensor, seeds: list[int], labels: Tensor | None) -> None:
    """A grid (.png), an array (.npz: arr_0 NHWC, arr_1 labels), or a folder with a PNG a seed."""
    if out.suffix == ".npz":
        arrays = {"arr_0": images.permute(0, 2, 3, 1).contiguous().numpy(), "seeds": np.array(seeds)}
        if labels is not None:
            arrays["arr_1"] = labels.numpy()
        with atomic_file(out) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    elif out.suffix == ".png":
        save_png(out, grid(images), scale=max(1, SMALLEST_SIDE // images.shape[-1]))
    elif out.suffix:
        raise UserError(f"{out.suffix!r} is not known", "--out", "use .png, .npz, or a folder's name")
    else:
        for seed, image in zip(seeds, images, strict=True):
            save_png(out / f"{seed:06d}.png", image)


def ready(model: Preconditioned, precision: str) -> Preconditioned:
    """The model in that precision ("": its own), in the memory format in which convolutions are fastest."""
    if precision:
        try:
            model.precision = precision  # type: ignore[assignment]
        except ValueError as error:
            raise UserError(str(error), "--precision") from error
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
