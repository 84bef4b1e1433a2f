"""The dry run: what a training would cost and write, from two of its steps on one image each."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistune.recipe.plan import Plan
from consistune.train.ema import PowerFunction

HALF_WAY = 0.5
"""The share of training at which the steps are taken: early steps may have no target to compute."""


@dataclass(frozen=True)
class Estimate:
    """The cost of a training, in bytes unless the name says otherwise.

    Attributes:
        parameters: their number.
        activations: the tensors that one image's step keeps for its gradient.
        at_a_time: the number of images of a micro-batch.
        references: the reference images of the noise estimator.
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
    seconds: float
    checkpoint: int

    @property
    def memory(self) -> int:
        """The sum, for a single process."""
        fixed = self.weights + self.gradients + self.optimizer + self.averages + self.references
        return fixed + self.activations * self.at_a_time


def estimate(plan: Plan, device: torch.device | str = "cpu") -> Estimate:
    """Take two steps on one image half-way through training: the first is measured, the second timed."""
    options = plan.options
    small = replace(plan, options=replace(options, batch=1, microbatch=None))
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
        seconds=seconds,
        checkpoint=sum(sizes.values()),
        **sizes,
    )


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


def report(plan: Plan, cost: Estimate, folder: Path) -> list[tuple[str, str]]:
    """Rows of (what, how much) for the command's table."""
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
        ("precision", options.precision),
        ("memory, about", size(cost.memory)),
        ("  weights", size(cost.weights)),
        ("  gradients", size(cost.gradients)),
        ("  optimizer", size(cost.optimizer)),
        (f"  {len(options.ema)} averages", size(cost.averages)),
        (f"  activations of {cost.at_a_time} images", size(cost.activations * cost.at_a_time)),
        ("  references", size(cost.references)),
        ("one image at a time", f"{1 / cost.seconds:,.1f} images/s"),
        ("steps", f"{-(-options.images // options.batch):,} of {options.batch} images"),
        (f"{folder}/", "recipe.yaml, environment.json, log.txt, metrics.jsonl"),
        ("  checkpoints/", f"every {options.checkpoint_images:,} images, {size(cost.checkpoint)} each"),
        ("  samples/", "a picture with every checkpoint"),
    ]
    if options.snapshots:
        shares = ", ".join(f"{share:.0%}" for share in options.snapshots)
        rows.append(("  snapshots/", f"at {shares}, {size(cost.weights)} each"))
    if options.ema_snapshot_images is not None:
        kept = sum(isinstance(average, PowerFunction) for average in options.ema)
        half = 2 if options.ema_snapshot_precision == "fp16" else 1
        count = kept * -(-options.images // options.ema_snapshot_images)
        rows.append(("  ema/", f"{count} files, {size(cost.weights // half)} each"))
    return [*rows, ("  model/", f"the averaged model, {size(cost.weights)}")]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def size(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
