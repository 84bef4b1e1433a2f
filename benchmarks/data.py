"""The cost of data: preparing sets of the published sizes, and feeding a prepared set to training.

    python benchmarks/data.py prepare [--only cifar imagenet64 zip]     some minutes, 5 GB of disk
    python benchmarks/data.py feeding [--only 32 64]                    some three minutes, 2 GB of disk

The disk is freed at the end.
prepare: `consistune data prepare` as a user runs it, of three sources made here in the official layouts from
  noise over smooth pictures. cifar: an archive of 60,000 images 3×32×32 in six Python-2 pickles. imagenet64:
  131,072 images 3×64×64 in ten npz batches, a tenth of the full set. zip: 1,281,167 members, as many as
  ImageNet has, each a tiny PNG, for the cost of the names. Memory is sampled 20 times a second over the tree
  of processes: the sum of anonymous memory (which the system cannot take back), and of resident memory.
feeding: images a second of what the training loop calls, rows of a fresh permutation and `ImageSet.batch`
  over the memory map (uint8 to fp32 in [−1, 1], labels, rows), with the file in the page cache (warm) or not
  (cold, read at random as in a first epoch); against ECT steps of the smallest network and of DDPM++. One
  thread.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness import Benchmark, Record, shown
from tables import markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.makers import cifar_files, encoded, tar

from consistune.core.estimators import OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.data.images import ImageSet, load_data
from consistune.data.prepare.run import PrepareOptions
from consistune.data.prepare.run import prepare as prepare_set
from consistune.data.sources.base import SourceOptions
from consistune.nn import store
from consistune.nn.presets import PRESETS
from consistune.system.host import machine
from consistune.training.loop import EpochOrder, Trainer, TrainOptions
from consistune.training.optim import Optimizer

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--work", type=Path, default=Path("/var/tmp/consistune-benchmark"))
benchmark.parser.add_argument(
    "--make", action="store_true", help="make the sources of `prepare` for a later run"
)

# --- prepare

TITLES = {
    "cifar": "CIFAR-10's archive",
    "imagenet64": "downsampled ImageNet, ten npz batches",
    "zip": "EDM's ZIP with as many members as ImageNet has",
}


def pictures(count: int, side: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours with noise on them, uint8 [count, 3, side, side]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 200, (count, 3, 4, 4), dtype=np.uint8)
    large = coarse.repeat(side // 4, 2).repeat(side // 4, 3)
    return large + generator.integers(0, 56, large.shape, dtype=np.uint8)


def make_cifar(folder: Path, scale: int) -> Path:
    count = 60_000 // scale
    files = cifar_files(pictures(count, 32, 0), (np.arange(count) * 7 % 10).tolist(), 5, count // 6)
    return tar(folder / "cifar-10-python.tar.gz", files)


def make_imagenet64(folder: Path, scale: int) -> Path:
    root = folder / "Imagenet64_train"
    root.mkdir()
    each = 13_108 // scale
    for k in range(1, 11):
        count = each if k < 10 else 131_072 // scale - 9 * each
        labels = np.random.default_rng(k).integers(1, 1001, count)
        data = pictures(count, 64, k).reshape(count, -1)
        np.savez(root / f"train_data_batch_{k}.npz", data=data, labels=labels)
    return root


def make_zip(folder: Path, scale: int) -> Path:
    path, data, labels = folder / "members.zip", encoded(np.zeros((4, 4), np.uint8)), []
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(1_281_167 // scale):
            name = f"{k // 1000:05d}/img{k:08d}.png"
            archive.writestr(zipfile.ZipInfo(name), data)
            labels.append([name, k % 1000])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    return path


MAKERS = {"cifar": make_cifar, "imagenet64": make_imagenet64, "zip": make_zip}


def process_tree(root: int) -> list[int]:
    """The ids of a process and of all its descendants."""
    pids = [root]
    for pid in pids:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                pids += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return pids


def memory(pids: list[int]) -> tuple[int, int]:
    """Anonymous and resident bytes of all processes together."""
    total = {"RssAnon": 0, "VmRSS": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        for name, _, value in (line.partition(":") for line in lines):
            if name in total:
                total[name] += 1024 * int(value.split()[0])
    return total["RssAnon"], total["VmRSS"]


def timed(command: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command. Raises RuntimeError where it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous = resident = 0
    while process.poll() is None:
        now = memory(process_tree(process.pid))
        anonymous, resident = max(anonymous, now[0]), max(resident, now[1])
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
    return {"seconds": seconds, "anonymous_mib": anonymous / 2**20, "resident_mib": resident / 2**20}


def prepare_table(record: Record) -> str:
    rows = []
    for name, title in TITLES.items():
        if name in record:
            images, shape, rounds = (record[name][key] for key in ("images", "shape", "rounds"))
            seconds = [each["seconds"] for each in rounds]
            anonymous, resident = (
                max(each[key] for each in rounds) for key in ("anonymous_mib", "resident_mib")
            )
            rows.append([title, f"{images:,} of {'×'.join(map(str, shape))}"])
            rows[-1] += [
                ", ".join(f"{s:.1f}" for s in seconds),
                f"{images / statistics.median(seconds):,.0f}",
            ]
            rows[-1] += [f"{anonymous:,.0f} MiB ({resident:,.0f})"]
    return markdown(["source", "images", "seconds", "images a second", "memory"], rows)


@benchmark.section("prepare_data.json", MAKERS, tables={("data-form.md", "prepare"): prepare_table})
def prepare(given: Namespace, part: str) -> Record:
    folder = given.work / "prepare" / part
    if not (folder / "made").exists():
        folder.mkdir(parents=True)
        (folder / "made").write_text(str(MAKERS[part](folder, 100 if given.quick else 1)))
    if given.make:
        return {}
    source, dest, rounds = (folder / "made").read_text(), folder / "prepared", []
    for _ in range(given.rounds):
        rounds.append(timed([sys.executable, "-m", "consistune", "data", "prepare", source, str(dest)]))
        meta = json.loads((dest / "meta.json").read_text())
        shutil.rmtree(dest)
    shutil.rmtree(folder)
    images = sum(split["images"] for split in meta["parts"].values())
    return {part: {"images": images, "shape": meta["shape"], "rounds": rounds, "machine": machine()}}


# --- feeding

BATCH = 128
SETS = {"32": 60_000, "64": 65_536}
"""Side → images."""
DDPMPP = {"32": PRESETS["edm-cifar10-ddpmpp"]["network"], "64": PRESETS["edm-ffhq64-ddpmpp"]["network"]}


def make_set(folder: Path, count: int, side: int) -> Path:
    """A prepared set of noise; the speed of reading does not depend on the content."""
    array = np.lib.format.open_memmap(folder / "set.npy", "w+", np.uint8, (count, 3, side, side))
    for first in range(0, count, 8192):
        block = array[first : first + 8192]
        block[:] = np.random.default_rng(first).integers(0, 256, block.shape, dtype=np.uint8)
    del array
    prepare_set(folder / "set.npy", folder / "set", PrepareOptions(SourceOptions(layout="nchw")))
    (folder / "set.npy").unlink()
    return folder / "set"


def rate(step: Callable[[int], int], seconds: float) -> float:
    """Images a second of step(images so far) → images."""
    images, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds:
        images += step(images)
    return images / spent


def feed(data: ImageSet, order: EpochOrder, images: int) -> int:
    """The batch that follows `images` images; its size."""
    return len(data.batch(order.rows(images, BATCH), conditional=True))


def feeding_rates(folder: Path, rounds: int, seconds: float) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {"warm": [], "cold": []}
    for seed in range(rounds):
        with (folder / "train" / "images.npy").open("rb") as file:  # while nothing maps it
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = load_data(str(folder)).train
        for kind in ("cold", "warm"):
            order = EpochOrder(len(data), seed)
            rates[kind].append(rate(partial(feed, data, order), seconds))
            data.images.sum(dtype=torch.int64)  # reads every page
    return rates


def training_rates(data: ImageSet, network: Record, batch: int, rounds: int, seconds: float) -> list[float]:
    """Images a second of whole training steps on one and the same batch, made beforehand."""
    torch.manual_seed(0)
    model = store.build({"network": network, "precond": {"kind": "edm"}})
    objective = Consistency(EDM(), LogNormalPairs(gap=SigmoidGap()), OneSample())
    made = data.batch(torch.arange(batch), conditional=False)
    fixed = type("Fixed", (), {"__len__": lambda _: len(data), "batch": lambda *_, **__: made})()
    options = TrainOptions(images=10**9, batch=batch)
    steps = Trainer(model, objective, fixed, Optimizer("radam"), options).steps()
    next(steps)

    def step(_: int) -> int:
        next(steps)
        return batch

    return [rate(step, seconds) for _ in range(rounds)]


def feeding_table(record: Record) -> str:
    rows = []
    for side in (side for side in SETS if side in record):
        each = record[side]
        title, warm = f"{each['images']:,}, 3×{side}×{side}", statistics.median(each["feeding"]["warm"])
        rates = {f"feeding, {kind}": each["feeding"][kind] for kind in ("warm", "cold")}
        rates |= {f"an ECT step, {name}": values for name, values in each["training"].items()}
        for name, values in rates.items():
            times = f"{warm / statistics.median(values):,.0f}×" if "step" in name else ""
            rows.append([title, name, shown(values, 0 if min(values) >= 10 else 2, to="to"), times])
    return markdown(["images", "", "images a second", "feeding, warm / step"], rows)


@benchmark.section("feeding.json", SETS, tables={("data-form.md", "feeding"): feeding_table})
def feeding(given: Namespace, part: str) -> Record:
    count, seconds = (SETS[part] // 50, 0.2) if given.quick else (SETS[part], 3.0)
    folder = given.work / "feeding" / part
    folder.mkdir(parents=True)
    try:
        path = make_set(folder, count, int(part))
        rates = feeding_rates(path, given.rounds, seconds)
        data = load_data(str(path)).train
        networks = {"patch-unet": {"kind": "patch-unet", "image_shape": (3, int(part), int(part))}}
        training = {
            name: training_rates(data, network, 4 if name == "DDPM++" else BATCH, given.rounds, seconds)
            for name, network in (networks | {"DDPM++": DDPMPP[part]}).items()
        }
    finally:
        shutil.rmtree(folder)
    return {"machine": machine(), part: {"images": count, "feeding": rates, "training": training}}


if __name__ == "__main__":
    benchmark.main()
