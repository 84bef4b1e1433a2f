"""Load a model of any form, and sample images from it.

The image of a seed does not depend on the other seeds that are drawn with it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from consistune.core.guidance import Guided
from consistune.core.noise import EDM, NoiseSchedule, rescheduled
from consistune.core.posterior.mean import quantise
from consistune.core.rng import Between, ImageNoise
from consistune.core.sampling import Sampler
from consistune.core.types import Denoiser
from consistune.errors import UserError
from consistune.interop.pipelines import is_pipeline
from consistune.nn import hub, store
from consistune.nn.autoencoder.space import from_model, open_space
from consistune.nn.module import Factory
from consistune.nn.precond import Preconditioned, evaluating
from consistune.nn.sampler import DIFFUSION_STEPS as DIFFUSION_STEPS
from consistune.nn.sampler import StepsDoNotFit as StepsDoNotFit
from consistune.nn.sampler import check_guidance as check_guidance
from consistune.nn.sampler import check_guided, check_options, listed_seeds
from consistune.nn.sampler import default_sampler as default_sampler
from consistune.pages.pictures import save_grid

BOX = Path(__file__).parent / "box"
"""The models that come with the package, a folder each."""
MODEL_NAMES = (store.CONFIG, "model", "checkpoints", "model_index.json")
"""Of these a folder with a model, a run or a pipeline has one."""


def load(
    path: str | Path,
    device: torch.device | str = "cpu",
    network: Factory | None = None,
    verify: bool = True,
) -> Preconditioned:
    """The model in a folder (`nn.store`), a run's folder, or an official checkpoint (`interop.checkpoints`).

    A folder of diffusers with a UNet2DModel is one too (`interop.pipelines`).

    path: also "hf://user/name" or "hf://user/name@revision", a model on the Hugging Face Hub; where there is
    no such path, the built-in model of that name.
    network: for a model around a module that is not ours, a function that makes the module (`nn.module`).
    verify: as in `nn.store.load`.
    In evaluation mode. Nothing in the file is executed. Raises UserError for anything else.
    """
    path = hub.resolved(path)
    if Path(path).is_file() or is_pipeline(Path(path)):
        from consistune.interop.checkpoints import load_checkpoint

        return _placed(load_checkpoint(path, network=network), device)
    try:
        return _placed(store.load(find(path), network=network, verify=verify), device)
    except UserError as error:
        if find(path).exists() or len(Path(path).parts) > 1:  # not a name
            raise
        remedy = (
            f"give the folder of a model or a run, or the name of a built-in one: {', '.join(built_in())}"
        )
        raise UserError(error.what, str(path), remedy) from error


def _placed(model: Preconditioned, device: torch.device | str) -> Preconditioned:
    """The model on that device. Raises UserError where there is none."""
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # of torch, by the kind of the device
        raise UserError(str(error).splitlines()[0], f"device {device}", "use cpu") from error


def find(path: str | Path) -> Path:
    """The path, or where no model is there the folder of the built-in model of that name."""
    place = Path(path)
    if str(path) not in built_in() or place.is_file() or any((place / name).exists() for name in MODEL_NAMES):
        return place
    return BOX / path


def built_in() -> list[str]:
    """The names of the models that come with the package, sorted."""
    return sorted(folder.name for folder in BOX.glob("*/"))


def export(model: Preconditioned | str | Path, dest: str | Path, format: str | None = None) -> Path:
    """Write a model, or one that `find` finds, for other programs; returns the path. It is not changed.

    format: "safetensors", "onnx" or "diffusers" (`interop.export.export_model`); None: by the file's ending.
    Raises UserError for a model that the format cannot hold, and for a destination that exists.
    """
    from consistune.interop.export import export_model

    source = model if isinstance(model, Preconditioned) else find(hub.resolved(model))
    return export_model(source, dest, format)


def picture_shape(model: Preconditioned) -> tuple[int, int, int]:
    """(C, H, W) of the pictures that `sample` gives."""
    latents = from_model(model)
    return model.image_shape if latents is None else latents.picture_shape


def load_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, from a safetensors or torch file. Nothing in the file is executed."""
    from consistune.interop.reading import read_checkpoint
    from consistune.interop.weights import to_tensor

    return {name: to_tensor(record) for name, record in read_checkpoint(path).tensors.items()}


@torch.no_grad()
def sample(
    model: Preconditioned,
    seeds: Iterable[int | Between],
    steps: int | None = None,
    condition: Tensor | int | Sequence[int] | None = None,
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
    latents: bool = False,
) -> Tensor:
    """Draw one image a seed.

    Args:
        seeds: one an image; also `core.rng.Between(first, second, share)`, noise between that of two seeds.
        steps: network evaluations of a consistency model, Heun steps of a diffusion model. None: the number
            that the model's card implies, see `default_sampler`.
        condition: a class label for all, or labels [N]; None: unconditional, or for a class-conditional
            model the classes in turn (seed modulo number of classes).
        sampler: replaces the default sampler, to which steps, mid_t and eta belong.
        guidance, worse: ω and f_bad of f_bad + ω·(f − f_bad); worse=None is the model without a label.
        guidance_interval: (low, high); guidance acts where low < t ≤ high.
        mid_t: noise levels of the second and later steps.
        eta: share of edge-skipping of a phased model.
        batch: the number of images at a time; it changes the memory, not the results.
        schedule: the process of the sampler; None: EDM's.
        progress: called with the number of images done.
        latents: of a model of latents, give the autoencoder's latents and do not decode them.

    Returns:
        uint8 images [N, C, H, W]; with `latents`, fp32 [N, c, h, w].

    Raises UserError for arguments that do not fit, for latents of a model of pictures, and, with the seeds,
    for images that are not finite.
    """
    seeds, process = listed_seeds(model, seeds), schedule or EDM()
    check_options(sampler, steps is None and mid_t is None and eta == 1.0, eta, batch)
    try:
        labels = _labels(model, seeds, condition, next(model.parameters()).device)
        sampler = sampler or default_sampler(model, steps, mid_t, eta).under(process)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), "sample") from error
    check_guided(model, worse, guidance, guidance_interval)
    finish = _finishing(model, latents)
    denoiser = Guided(model, worse, guidance, *guidance_interval) if guidance != 1.0 else model
    images = []
    with evaluating(model), evaluating(worse):
        for start in range(0, len(seeds), batch):
            part = slice(start, start + batch)
            own = None if labels is None else labels[part]
            images.append(finish(_draw(model, denoiser, sampler, process, seeds[part], own)))
            if progress is not None:
                progress(len(seeds[part]))
    return torch.cat(images) if images else finish(torch.empty(0, *model.image_shape))


def _finishing(model: Preconditioned, latents: bool) -> Callable[[Tensor], Tensor]:
    """What makes of samples x what is delivered, on the CPU: uint8 images, or with `latents` raw latents."""
    record = from_model(model)
    if record is None:
        if latents:
            raise UserError("the model makes pictures, not latents", "latents", "leave the option out")
        return lambda x: quantise(x).cpu()
    space = open_space(record, next(model.parameters()).device)
    return (lambda x: space.raw(x).cpu()) if latents else space.decode


def _draw(
    model: Preconditioned,
    denoiser: Denoiser,
    sampler: Sampler,
    schedule: NoiseSchedule,
    seeds: list[int | Between],
    labels: Tensor | None,
) -> Tensor:
    """One batch of finite samples x [N, C, H, W]."""
    noise = ImageNoise(seeds, next(model.parameters()).device)
    x = sampler(rescheduled(denoiser, schedule), schedule, noise, model.image_shape, labels)
    _check_finite(x, seeds)
    return x


def _check_finite(x: Tensor, seeds: list[int | Between]) -> None:
    """Raises UserError where an image of x [N, C, H, W] is not finite, which as uint8 would be black."""
    bad = (~x.isfinite().flatten(1).all(1)).tolist()
    wrong = [seed for seed, is_bad in zip(seeds, bad, strict=True) if is_bad]
    if wrong:
        named = ", ".join(map(str, wrong[:8])) + (", …" if len(wrong) > 8 else "")
        raise UserError(
            f"{len(wrong)} of {len(seeds)} samples have values that are not finite (seeds {named})",
            "sampling",
            "look whether the model's training diverged; try less guidance, or precision fp32",
        )


def sheet_fault(model: Preconditioned) -> str | None:
    """Why `draw_sheet` cannot draw a model's samples, as far as that is known before; None: it can."""
    channels = picture_shape(model)[0]
    if channels not in (1, 3):
        return f"images of {channels} channels are no pictures"
    try:
        default_sampler(model, None)
        _finishing(model, latents=False)
    except (UserError, ValueError) as error:
        return str(error)
    return None


def draw_sheet(model: Preconditioned, path: Path) -> None:
    """Write a picture of the samples of the seeds 0 … 63, drawn with the default sampler."""
    save_grid(path, sample(model, range(64)))


def _labels(
    model: Preconditioned,
    seeds: list[int | Between],
    condition: Tensor | int | Sequence[int] | None,
    device: torch.device,
) -> Tensor | None:
    if condition is None:
        if model.num_classes == 0:
            return None
        first = [seed.first if isinstance(seed, Between) else seed for seed in seeds]
        return torch.tensor([seed % model.num_classes for seed in first], device=device)
    try:
        labels = torch.as_tensor(condition, device="cpu")
    except (RuntimeError, TypeError, ValueError) as error:
        what = f"condition {condition!r:.60} is no label: give a class's number, or one for each seed"
        raise ValueError(what) from error
    if labels.is_complex():
        raise ValueError("a condition has no complex numbers")
    if not labels.is_floating_point():
        labels = labels.long()
    if labels.ndim == 0:
        labels = labels.expand(len(seeds))
    if len(labels) != len(seeds):
        raise ValueError(f"{len(labels)} conditions for {len(seeds)} seeds")
    model.one_hot(labels, len(labels), torch.empty(0))  # refuses unknown labels before they are on a card
    return labels.to(device)
