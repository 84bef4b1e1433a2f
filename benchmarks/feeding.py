"""Images a second that a prepared set gives to training, against what a training step takes.

    python benchmarks/feeding.py [--work FOLDER]         some three minutes, 2 GB of disk, removed again

Feeding is what the loop calls: rows of a fresh permutation, then `ImageSet.batch` over the memory map: uint8
to fp32 in [−1, 1], labels, rows. Warm: the file is in the page cache. Cold: dropped from there before, and
read at random, as in a first epoch. The step is one of ECT (the student's pass with its gradient, that of the
target, the optimizer's update), with the smallest network in the box for such images and with DDPM++ of the
published size. One thread. Writes results/feeding.json and the table in docs/data.md.
"""

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consistune.core.estimators import OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.data.images import ImageSet, load_data
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.sources.base import SourceOptions
from consistune.nn import store
from consistune.nn.presets import PRESETS
from consistune.system.host import machine
from consistune.train.loop import EpochOrder, Trainer, TrainOptions
from consistune.train.optim import Optimizer
from pages import fill

RESULT = Path(__file__).parent / "results" / "feeding.json"
BATCH, SECONDS = 128, 3.0
SETS = {32: 60_000, 64: 65_536}
NETWORKS: dict[int, dict[str, dict[str, Any]]] = {
    32: {"patch-unet": {"kind": "patch-unet", "image_shape": (3, 32, 32)},
         "DDPM++": PRESETS["edm-cifar10-ddpmpp"]["network"]},
    64: {"patch-unet": {"kind": "patch-unet", "image_shape": (3, 64, 64)},
         "DDPM++": PRESETS["edm-ffhq64-ddpmpp"]["network"]},
}  # fmt: skip


def make_set(folder: Path, side: int) -> Path:
    """Noise: what is read does not matter to the speed of reading it."""
    count = SETS[side]
    array = np.lib.format.open_memmap(folder / "set.npy", "w+", np.uint8, (count, 3, side, side))
    for first in range(0, count, 8192):
        part = array[first : first + 8192]
        part[:] = np.random.default_rng(first).integers(0, 256, part.shape, dtype=np.uint8)
    del array
    prepare(folder / "set.npy", folder / "set", PrepareOptions(SourceOptions(layout="nchw")))
    (folder / "set.npy").unlink()
    return folder / "set"


def rate(step: Callable[[int], int], seconds: float) -> float:
    """Images a second of step(images so far) → images."""
    images, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        images += step(images)
    return images / spent


def feed(data: ImageSet, order: EpochOrder) -> Callable[[int], int]:
    def step(images: int) -> int:
        return len(data.batch(order.rows(images, BATCH), conditional=True))

    return step


def drop(path: Path) -> None:
    """Out of the page cache; possible because nobody has the file mapped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def feeding(folder: Path, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"warm": [], "cold": []}
    for seed in range(rounds):
        drop(folder / "train" / "images.npy")
        data = load_data(str(folder)).train
        found["cold"].append(rate(feed(data, EpochOrder(len(data), seed)), SECONDS))
        data.images.sum(dtype=torch.int64)  # every page is read once
        found["warm"].append(rate(feed(data, EpochOrder(len(data), seed)), SECONDS))
        del data
    return found


def training(data: ImageSet, network: dict[str, Any], batch: int, rounds: int) -> list[float]:
    """Images a second of whole training steps, without the feeding."""
    torch.manual_seed(0)
    model = store.build({"network": network, "precond": {"kind": "edm"}})
    objective = Consistency(EDM(), LogNormalPairs(gap=SigmoidGap()), OneSample())
    options = TrainOptions(images=10**9, batch=batch)
    steps = Trainer(model, objective, Fixed(data, batch), Optimizer("radam"), options).steps()
    next(steps)
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        count = 0
        while not count or time.perf_counter() - began < SECONDS:
            next(steps)
            count += 1
        found.append(count * batch / (time.perf_counter() - began))
    return found


class Fixed:
    """A data set whose every batch is the first one, made beforehand."""

    def __init__(self, data: ImageSet, batch: int) -> None:
        self.size, self.made = len(data), data.batch(torch.arange(batch), conditional=False)

    def __len__(self) -> int:
        return self.size

    def batch(self, rows: object, conditional: bool, device: object = "cpu") -> Any:
        del rows, conditional, device
        return self.made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/consistune-feeding-benchmark"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, choices=sorted(SETS), action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results["machine"] = machine()
    for side in options.only or SETS:
        folder = options.work / str(side)
        folder.mkdir(parents=True)
        path = make_set(folder, side)
        found: dict[str, Any] = {"images": SETS[side], "feeding": feeding(path, options.rounds)}
        data = load_data(str(path)).train
        found["training"] = {
            name: training(data, network, 4 if name == "DDPM++" else BATCH, options.rounds)
            for name, network in NETWORKS[side].items()
        }
        del data
        shutil.rmtree(folder)
        print(side, json.dumps(found), flush=True)
        RESULT.write_text(json.dumps(results | {str(side): found}, indent=1) + "\n")
        results[str(side)] = found
    page(results)


def shown(values: list[float]) -> str:
    digits = 0 if min(values) >= 10 else 2
    middle, least, most = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({least} to {most})"


def page(results: dict[str, Any]) -> None:
    lines = ["| images | | images a second | feeding, warm / step |", "|---|---|---|---|"]
    for side in (side for side in SETS if str(side) in results):
        found = results[str(side)]
        title = f"{found['images']:,}, 3×{side}×{side}"
        lines += [
            f"| {title} | feeding, {kind} | {shown(found['feeding'][kind])} | |" for kind in ("warm", "cold")
        ]
        warm = statistics.median(found["feeding"]["warm"])
        for name, values in found["training"].items():
            times = warm / statistics.median(values)
            lines.append(f"| {title} | an ECT step, {name} | {shown(values)} | {times:,.0f}× |")
    fill("data.md", "feeding", "\n".join(lines))


if __name__ == "__main__":
    main()
