"""How long a training takes on this device, from steps timed at the recipe's size, and the disk it fills."""

import copy
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from consistune.recipe.cost import HALF_WAY, Estimate, at_least, memory_of, size
from consistune.recipe.plan import Plan
from consistune.recipe.ranges import numbers
from consistune.recipe.words import Recipe
from consistune.system.host import memory_bytes
from consistune.training.ema import PowerFunction

TIMED_STEPS, LONGEST_SECONDS = 3, 20.0
"""Steps that are timed after one that is not, and how long they may take, by the time of one image."""


def images_per_second(plan: Plan, cost: Estimate, device: torch.device) -> tuple[float, int]:
    """(training images a second, images at a time) of a few steps half-way, on a copy of the model.

    Timed are micro-batches of the recipe's size, or smaller ones where those would take too long or not fit.
    """
    affordable = int(LONGEST_SECONDS / (TIMED_STEPS + 1) / cost.seconds)
    fitting = cost.largest_batch(memory_of(device) or memory_bytes())
    count = max(1, min(cost.at_a_time, affordable, fitting))
    options = replace(plan.options, batch=count, microbatch=None, compile=False, shard=False)
    options = at_least(options, (TIMED_STEPS + 1) * count)
    trainer = replace(plan, options=options, model=copy.deepcopy(plan.model)).trainer(device)
    trainer.images = max(0, int(options.images * HALF_WAY) - (TIMED_STEPS + 1) * count)
    steps = trainer.steps()
    next(steps)
    began = time.perf_counter()
    for _ in range(TIMED_STEPS):
        next(steps)
    return TIMED_STEPS * count / (time.perf_counter() - began), count


def disk_bytes(plan: Plan, cost: Estimate) -> int:
    """What the run's folder holds at the end: checkpoints, snapshots, averages, the model."""
    options = plan.options
    number = min(options.keep, 1 + math.ceil(options.images / options.checkpoint_images))
    powers = sum(isinstance(average, PowerFunction) for average in options.ema)
    every = options.ema_snapshot_images
    kept = powers * math.ceil(options.images / every) if every is not None else 0
    half = 2 if options.ema_snapshot_precision == "fp16" else 1
    best = int(options.evaluate_images is not None)
    models = len(options.snapshots) + 1 + best
    return number * cost.checkpoint + models * cost.weights + kept * cost.weights // half


def forecast(
    recipe: Recipe, plan: Plan, cost: Estimate, folder: Path, device: torch.device
) -> Iterator[tuple[str, str]]:
    """Rows of (what, how much): the time, the stages of the schedule, the disk."""
    rate, count = images_per_second(plan, cost, device)
    timed = f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"
    yield (
        "time, about",
        f"{duration(plan.options.images / rate)} on one {device.type}, without measuring: {timed}, "
        f"{TIMED_STEPS} steps of {count} images timed",
    )
    yield from stages(recipe)
    needed, free = disk_bytes(plan, cost), free_bytes(folder)
    short = "; that is too little" if needed > free else ""
    yield "disk, at the end", f"{size(needed)} of {size(free)} free{short}"


def stages(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """A row for each schedule that goes on in stages of training images."""
    train: Any = recipe.train
    for key, every in numbers(recipe):
        if key.endswith("every_images") and every:
            yield "stages", f"{math.ceil(train.images / every)} of {every:,} images ({key})"


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk on which a folder lies or would lie."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def duration(seconds: float) -> str:
    """90 → "1.5 min"."""
    for unit, length in (("days", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= length * (2 if unit == "days" else 1):
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
