"""A disk that gets full in the middle of each kind of write.

    python -m tests.attack.full_disk FOLDER SECONDS SEED        prints JSON: kind → outcome → how often

FOLDER is a small file system of its own (a tmpfs), which a filler leaves with a random room, less than the
write needs. Where FOLDER is no mount, no file may grow beyond that room instead (RLIMIT_FSIZE). The write
must end with the line of a full disk, or finish with a warning; when there is room again, the same write
gives what it gives undisturbed, and nothing half-written is left.
"""

import errno
import json
import os
import random
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from consistune.cli import images_out
from consistune.cli.main import explain
from consistune.data.prepare.latents import LatentOptions, prepare_latents
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.interop.export import export_model
from consistune.metrics.features import load_extractor
from consistune.metrics.statistics import build_reference
from consistune.models import draw_sheet
from consistune.nn import store
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.training import checkpoint, posthoc
from consistune.training.ema import PowerFunction
from consistune.training.metrics_file import MetricsFile
from consistune.training.run import RunFolder
from tests.support.latents import source
from tests.support.makers import edm_zip, pixels

FULL = {errno.ENOSPC: "the disk is full: ", errno.EFBIG: "File too large"}
TIMES = {"images_per_second", "peak_memory_gib"}
RUN = (
    "network={kind: mlp, width: 32, blocks: 1}",
    "train={images: 384, batch: 64, log_images: 64, checkpoint_images: 128, snapshots: [0.5], trackers: [], "
    "ema: [{kind: power, std: 0.1}], ema_snapshot_images: 192}",
)


@dataclass(frozen=True)
class Write:
    """A kind of write.

    Attributes:
        act: writes below a folder, or goes on with what is there.
        warns: the program may go on where it fails: what is written is only for looking, or a cache.
    """

    act: Callable[[Path], object]
    warns: bool = False


def model(width: int = 64) -> EDMPrecond:
    torch.manual_seed(0)
    return EDMPrecond(ResidualMLP((1, 8, 8), width=width, blocks=2))


def train(folder: Path) -> None:
    """Begin or continue a small run with everything that a run writes."""
    recipe = read_recipe("digits-edm", list(RUN))
    trainer = make_plan(recipe).trainer()
    list(RunFolder.opened(folder / "run", to_yaml(recipe), trainer, draw=draw_sheet).steps(trainer))


def sampled(name: str, form: str) -> Callable[[Path], None]:
    images, seeds = torch.from_numpy(pixels(64, 16, 16, 3)).permute(0, 3, 1, 2), range(64)

    def act(folder: Path) -> None:
        numbers = images_out.Seeds([seeds])
        with images_out.opened(folder / name, form, numbers, (3, 16, 16), labelled=True) as writer:
            writer.write(images, list(seeds), [0] * 64)

    return act


def once(name: str, act: Callable[[Path], object]) -> Callable[[Path], object]:
    """What makes a file or folder that must not be there yet."""
    return lambda folder: None if (folder / name).exists() else act(folder / name)


def writes(inputs: Path) -> dict[str, Write]:
    """Every kind of write; `inputs` lies elsewhere."""
    small = store.save(model(), inputs / "model")
    archive = edm_zip(inputs / "images.zip", pixels(600, 16, 16, 3), [k % 3 for k in range(600)])
    pictures = source(inputs / "pictures", 240)
    digits = torch.from_numpy(pixels(300, 8, 8))[:, None].repeat(1, 3, 1, 1)
    options = LatentOptions("tiny", flip=True)

    def metrics(folder: Path) -> None:
        file = MetricsFile(folder)
        file.truncate(-1)
        for step in range(400):
            file.append({"images": 64 * step, "step": step, "loss": 1 / (step + 1)})

    def snapshot(folder: Path) -> None:
        posthoc.save_snapshot(folder, PowerFunction(0.1), model(), 64, "fp32")

    def cached(folder: Path) -> object:
        extractor = load_extractor("tests.attack.full_disk:features", torch.device("cpu"), None)
        return build_reference("digits", digits, extractor, cache=folder)

    return {
        "checkpoint": Write(lambda f: checkpoint.save(f / "c", {"step": 3, "w": torch.arange(50_000)})),
        "model": Write(lambda f: store.save(model(), f / "model")),
        "average": Write(snapshot),
        "metrics": Write(metrics),
        "run": Write(train, warns=True),
        "prepared set": Write(once("set", lambda f: prepare(archive, f, PrepareOptions()))),
        "latents": Write(once("set", lambda f: prepare_latents(pictures, f, PrepareOptions(), options))),
        "export": Write(once("e.safetensors", lambda f: export_model(small, f))),
        "samples.npz": Write(sampled("a.npz", "npz")),
        "samples.png": Write(sampled("a.png", "png")),
        "samples, a folder": Write(sampled("a", "folder")),
        "cache": Write(cached, warns=True),
    }


def features(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).float()


def size_of(folder: Path) -> int:
    """Of all files; where a file's size is what is limited, of the largest one."""
    sizes = [path.stat().st_blocks * 512 for path in folder.rglob("*")]
    return sum(sizes) if folder.parent.is_mount() else max(sizes)


@contextmanager
def room(folder: Path, size: int) -> Iterator[None]:
    """Leave `size` bytes on the file system of a folder; or let no file be larger."""
    if not folder.parent.is_mount():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    filler = folder.parent / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(folder).free - size, 1))
    try:
        yield
    finally:
        filler.unlink()


def content(folder: Path) -> dict[str, Any]:
    """Every file, by what must be the same in it."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if path.name in ("log.txt", "environment.json", ".lock", "meta.json"):
            continue
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in data.decode().splitlines()]
            found[name] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        elif checkpoint.NAME.fullmatch(path.name):  # the same state may be pickled in another way
            found[name[:-20]] = plain(torch.load(path, weights_only=True))
        elif path.suffix == ".safetensors":  # the order of its metadata is random
            found[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        elif path.suffix == ".npz":
            found[name] = {k: v.tobytes() for k, v in np.load(path).items()}
        else:
            found[name] = data
    return found


def plain(tree: Any) -> Any:
    """A state with its tensors as bytes, which `==` can compare."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(value) for value in tree]
    return tree.numpy().tobytes() if isinstance(tree, torch.Tensor) else tree


def outcome(write: Write, folder: Path, size: int) -> str:
    """What a write gives where there is room for `size` bytes only."""
    with room(folder, size):
        try:
            write.act(folder)
        except Exception as error:
            status, line = explain(error)
            known = any(words in line for words in FULL.values()) or "bytes are needed" in line
            return "refused" if known else f"{status} {line}"
    return "finished"


def attack(folder: Path, inputs: Path, seconds: float, seed: int) -> dict[str, dict[str, int]]:
    dice, began, kinds = random.Random(seed), time.monotonic(), writes(inputs)
    whole, counts = {}, {name: Counter[str]() for name in kinds}
    for name, write in kinds.items():
        place = folder / f"whole {name}".replace(" ", "-")
        place.mkdir()
        write.act(place)
        whole[name] = content(place), size_of(place)
        shutil.rmtree(place)
    while not counts["cache"] or time.monotonic() - began < seconds:
        for name, write in kinds.items():
            place = folder / "place"
            place.mkdir()
            expected, most = whole[name]
            found = outcome(write, place, dice.randrange(most) // 4096 * 4096)
            partial = [p.name for p in place.rglob("*") if p.name.endswith(".partial")]
            write.act(place)
            after = content(place)
            odd = [name for name in {**after, **expected} if after.get(name) != expected.get(name)]
            if odd:
                found = f"{found}, then another {odd[0]}"
            elif partial:
                found = f"{found}, left {partial[0]}"
            elif found == "finished" and write.warns:
                found = "warned"
            counts[name][found] += 1
            shutil.rmtree(place)
    return {name: dict(found) for name, found in counts.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    print(json.dumps(attack(target, target.with_name("inputs"), float(sys.argv[2]), int(sys.argv[3]))))
