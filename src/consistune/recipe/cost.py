"""What a training would cost and write, from two steps on one image each, and what batch fits a memory."""

import copy
import gc
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.recipe.plan import Plan
from consistune.system.processes import Processes
from consistune.training.ema import PowerFunction
from consistune.training.options import TrainOptions, share_name

HALF_WAY = 0.5
"""The share of training at which the steps are taken: early steps may have no target to compute."""
USABLE = 0.9
"""The share of a device's memory that a step may fill; the rest is for its library, workspaces and gaps."""
UNITS = {
    "": 1,
    **{f"{p}{b}": (1024 if b == "iB" else 1000) ** n for n, p in enumerate("KMGT", 1) for b in ("iB", "B")},
}


@dataclass(frozen=True)
class Estimate:
    """The cost of a training, in bytes unless the name says otherwise.

    Attributes:
        parameters: their number.
        activations: the tensors that one image's step keeps for its gradient.
        at_a_time: the number of images of a micro-batch.
        references: the reference images of the noise estimator.
        teachers: the weights of other networks that the objective holds.
        seconds: the time of one step on one image, the second of two.
        checkpoint: the size of a checkpoint on disk.
    """

    parameters: int
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    at_a_time: int
    references: int
    teachers: int
    seconds: float
    checkpoint: int

    @property
    def fixed(self) -> int:
        """What a process holds whatever its batch."""
        state = self.weights + self.gradients + self.optimizer + self.averages
        return state + self.references + self.teachers

    @property
    def memory(self) -> int:
        """The sum, for a single process."""
        return self.fixed + self.activations * self.at_a_time

    def largest_batch(self, memory: float) -> int:
        """The most images at a time that USABLE of a device's memory holds, by this estimate; 0: not one."""
        return max(0, int((USABLE * memory - self.fixed) // self.activations))


def at_least(options: TrainOptions, images: int) -> TrainOptions:
    """The options of a training that has so many images, for the steps that are tried."""
    return replace(options, images=max(options.images, images))


def estimate(plan: Plan, device: torch.device | str = "cpu") -> Estimate:
    """Take two steps on one image half-way through training: the first is measured, the second timed."""
    options = plan.options
    single = replace(options, batch=1, microbatch=None, shard=False)
    small = replace(plan, options=at_least(single, 4))
    trainer = small.trainer(device)
    trainer.images = int(options.images * HALF_WAY)
    steps = trainer.steps()
    with kept_for_gradient(trainer.model) as kept:
        next(steps)
    began = time.perf_counter()
    next(steps)
    seconds = time.perf_counter() - began
    averages = [*trainer.averages, *filter(None, [trainer.target_average])]
    sizes = {
        "weights": _bytes(trainer.model.state_dict()),
        "optimizer": _bytes(trainer.optimizer.state_dict()),
        "averages": sum(_bytes(average.model.state_dict()) for average in averages),
    }
    return Estimate(
        parameters=sum(p.numel() for p in trainer.model.parameters()),
        gradients=sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad),
        activations=kept[0],
        at_a_time=min(options.batch, options.microbatch or options.batch),
        references=plan.objective.reference_bytes(),
        teachers=sum(
            _bytes(net.state_dict()) for net in networks_in(plan.objective) if net is not plan.model
        ),
        seconds=seconds,
        checkpoint=sum(sizes.values()),
        **sizes,
    )


def networks_in(part: Any) -> list[nn.Module]:
    """The networks that a part of a recipe holds, and the parts within it, each once."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, Tensor):
            continue
        seen.add(id(one))
        if isinstance(one, nn.Module):
            found[id(one)] = one
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
        elif type(one).__module__.partition(".")[0] != "builtins":
            waiting += getattr(one, "__dict__", {}).values()
    return list(found.values())


def fitting_microbatch(plan: Plan, processes: Processes) -> int:
    """The most images at a time with which a step of the plan fits its device, found by trial on copies.

    Tried are a process's share of the batch, then its half, and so on; each takes two eager steps, the
    optimizer's state included. All processes get the smallest. Raises UserError where one image does not fit.
    """
    share = plan.options.batch // processes.count
    size = share
    while not _fits(plan, processes.device, size):
        if size == 1:
            remedy = "use train.checkpointing=true, a half precision, or a smaller network"
            raise UserError("a step on one image does not fit", f"memory of {processes.device}", remedy)
        size = -(-size // 2)
    parts = torch.tensor(-(-share // size), device=processes.device)
    return -(-share // int(processes.largest(parts)))


def _fits(plan: Plan, device: torch.device, size: int) -> bool:
    total = memory_of(device)
    if total is not None:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        _two_steps(plan, device, size)
    except RuntimeError as error:  # cuBLAS and cuDNN have no type for memory that they do not get
        if not isinstance(error, torch.OutOfMemoryError) and "ALLOC_FAILED" not in str(error):
            raise
        return False
    finally:
        release(device)
    return total is None or torch.cuda.max_memory_allocated(device) <= USABLE * total


def _two_steps(plan: Plan, device: torch.device, size: int) -> None:
    """Two steps on `size` images with a copy of the model."""
    options = replace(plan.options, batch=size, microbatch=None, compile=False, shard=False)
    options = at_least(options, 2 * size)
    trainer = replace(plan, options=options, model=copy.deepcopy(plan.model)).trainer(device)
    trainer.images = max(0, int(options.images * HALF_WAY) - 2 * size)
    steps = trainer.steps()
    next(steps)
    next(steps)


def release(device: torch.device) -> None:
    """Give memory that no tensor holds back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_of(device: torch.device) -> int | None:
    """The bytes of a CUDA device's memory; None for other devices."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


@contextmanager
def kept_for_gradient(model: nn.Module) -> Iterator[list[int]]:
    """Count the bytes of the storages that autograd keeps in the block, without those of the weights."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}
    total = [0]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield total
    total[0] = sum(seen.values())


def _bytes(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, dict):
        return sum(_bytes(value) for value in tree.values())
    return sum(_bytes(value) for value in tree) if isinstance(tree, list | tuple) else 0


def report(plan: Plan, cost: Estimate, folder: Path, memory: int | None = None) -> list[tuple[str, str]]:
    """Rows of (what, how much) for the command's table; with the bytes of a memory also what fits there."""
    options = plan.options
    latents = plan.data.train.latents
    of = (
        []
        if latents is None
        else [("latents", f"of {_times(latents.picture_shape)} pictures by {latents.autoencoder}")]
    )
    rows = [
        *of,
        ("parameters", f"{cost.parameters:,}"),
        ("precision", str(options.precision)),
        ("memory, about", size(cost.memory)),
        ("  weights", size(cost.weights)),
        ("  gradients", size(cost.gradients)),
        ("  optimizer", size(cost.optimizer)),
        (f"  {len(options.ema)} averages", size(cost.averages)),
        (f"  activations of {cost.at_a_time} images", size(cost.activations * cost.at_a_time)),
        ("  references", size(cost.references)),
        *([("  teachers", size(cost.teachers))] if cost.teachers else []),
        *([] if memory is None else [_fitting_row(cost, memory)]),
        ("one image at a time", f"{1 / cost.seconds:,.1f} images/s"),
        ("steps", f"{-(-options.images // options.batch):,} of {options.batch} images"),
        (f"{folder}/", "recipe.yaml, environment.json, log.txt, metrics.jsonl"),
        ("  checkpoints/", f"every {options.checkpoint_images:,} images, {size(cost.checkpoint)} each"),
        ("  samples/", "a picture with every checkpoint"),
    ]
    if options.snapshots:
        shares = ", ".join(map(share_name, options.snapshots))
        rows.append(("  snapshots/", f"at {shares}, {size(cost.weights)} each"))
    if options.ema_snapshot_images is not None:
        kept = sum(isinstance(average, PowerFunction) for average in options.ema)
        half = 2 if options.ema_snapshot_precision == "fp16" else 1
        count = kept * -(-options.images // options.ema_snapshot_images)
        rows.append(("  ema/", f"{count} files, {size(cost.weights // half)} each"))
    return [*rows, ("  model/", f"the averaged model, {size(cost.weights)}")]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _fitting_row(cost: Estimate, memory: int) -> tuple[str, str]:
    most = cost.largest_batch(memory)
    images = (
        f"{most:,} images at a time" if most else f"not one image: {size(cost.fixed)} are held without any"
    )
    return f"{size(memory)} have room for, about", images


def memory_size(text: str) -> int:
    """ "80GiB" or "24 GB" → bytes. Raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)?", text.strip())
    number = float(match[1]) * UNITS[match[2] or ""] if match else 0
    if number < 1:
        raise UserError(f"{text!r} is no size of a memory", "--memory", "write 80GiB or 24GB")
    return int(number)


def size(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
