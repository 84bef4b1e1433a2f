"""A run that is killed again and again, against the unbroken one: every number it leaves must be the same.

A small SCT run and a consistency-training run (with an averaged target), in turn, on the embedded digits,
with dropout, flips, hidden labels, snapshots, pictures and a measure, and a checkpoint every other step, are
killed with SIGKILL after a random time and continued until they finish; then the next begins, until there
were enough kills. Each finished folder is compared, bit for bit, with that of a run which nobody disturbed:
weights, averages, optimizer, counters, stored models, pictures, and the log (but for speed and memory).
What lay half-written in the folder after a kill tells what it interrupted.
"""

import json
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate.tracking  # noqa: F401 - here, so that the forked children have it
import pytest
import torch
import torch.utils.tensorboard
from safetensors.torch import load_file

from consistune.models import draw_sheet
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.training import checkpoint
from consistune.training.run import RunFolder

RECIPES = ("digits-sct", "digits-cm")
IMAGES, FEW = 3_840, 640
"""Images of a run by hand, and in the test suite."""
KEYS = (
    "start_from=null",
    "network={kind: mlp, width: 128, blocks: 2, dropout: 0.2}",
    "train={images: %d, batch: 64, ema: [0.99, 0.9], x_flip: true, label_dropout: 0.1, log_images: 64, "
    "checkpoint_images: 128, evaluate_images: 192, snapshots: [0.25, 0.5, 0.75]}",
)
UNREPEATABLE = ("images_per_second", "peak_memory_gib")
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])  # a child then starts within milliseconds


def measure(model: Preconditioned) -> dict[str, float]:
    """Something that changes as training goes on and falls now and then."""
    return {"weight": float(sum(p.double().sum() for p in model.parameters()).sin())}


def train(name: str, folder: Path, images: int) -> None:
    """Begin or continue the run in a folder."""
    torch.set_num_threads(1)
    recipe = read_recipe(name, [*KEYS[:-1], KEYS[-1] % images])
    resume = (folder / "recipe.yaml").exists()
    run = RunFolder(folder, to_yaml(recipe), resume=resume, draw=draw_sheet, evaluate=measure)
    trainer = make_plan(recipe).trainer()
    if resume:
        run.resume(trainer)
    for _ in run.steps(trainer):
        pass


def in_a_child(name: str, folder: Path, images: int, kill_after: float | None = None) -> bool:
    """Train in a process of its own, killed after so many seconds; whether it was killed."""
    child = CHILDREN.Process(target=train, args=(name, folder, images))
    child.start()
    child.join(kill_after)
    child.kill()
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the run in {folder} failed")
    return child.exitcode != 0


def interrupted_writing(folder: Path) -> str:
    """What a killed process was writing, by what lies about."""
    hidden = [p.relative_to(folder) for p in folder.rglob(".*") if p.name != ".lock"]
    return (
        "+".join(sorted({p.parts[0] if len(p.parts) > 1 else p.name.split(".")[1] for p in hidden}))
        or "nothing"
    )


def content(folder: Path) -> dict[str, Any]:
    """Everything in a run's folder that has to be the same."""
    newest = checkpoint.paths(folder / "checkpoints")[-1]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {
        "checkpoint": torch.load(newest, weights_only=True),
        "log": [{key: value for key, value in line.items() if key not in UNREPEATABLE} for line in lines],
    }
    for path in sorted(folder.rglob("*.safetensors")):
        found[str(path.relative_to(folder))] = load_file(path)
    for path in sorted([*folder.rglob("*.png"), *folder.rglob("config.json")]):
        found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two trees are not the same to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        if list(a) != list(b):
            return [f"{where}: {sorted(map(str, set(a) ^ set(b)))}"]
        return [line for key in a for line in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [
            line
            for i, (u, v) in enumerate(zip(a, b, strict=True))
            for line in differences(u, v, f"{where}/{i}")
        ]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


def tensors(tree: Any) -> int:
    if isinstance(tree, dict | list):
        return sum(tensors(item) for item in (tree.values() if isinstance(tree, dict) else tree))
    return int(isinstance(tree, torch.Tensor))


def attack(
    work: Path, images: int, kills: int, kills_a_run: int, seconds: float, seed: int
) -> dict[str, Any]:
    """Kill and continue runs until there were so many kills and the time is over; what was found.

    After `kills_a_run` kills nothing disturbs a run any more.
    """
    whole, alone = {}, {}
    for name in RECIPES:
        in_a_child(name, work / f"{name}-first", images, 0.5)  # the fork server starts
        began = time.perf_counter()
        in_a_child(name, work / f"{name}-unbroken", images)
        alone[name] = time.perf_counter() - began
        whole[name] = content(work / f"{name}-unbroken")
    dice, began = random.Random(seed), time.perf_counter()
    interrupted: Counter[str] = Counter()
    runs, found = [], list[str]()
    while interrupted.total() < kills or time.perf_counter() - began < seconds:
        name = RECIPES[len(runs) % len(RECIPES)]
        path, killed = work / f"{name}-{len(runs)}", 0
        while in_a_child(name, path, images, dice.uniform(0, alone[name]) if killed < kills_a_run else None):
            killed += 1
            interrupted[interrupted_writing(path)] += 1
        found += differences(whole[name], content(path), path.name)
        runs.append({"recipe": name, "kills": killed})
    return {
        "torch": torch.__version__,
        "seconds_unbroken": alone,
        "kills": interrupted.total(),
        "runs": runs,
        "interrupted_while_writing": dict(interrupted.most_common()),
        "tensors_compared_a_run": {name: tensors(content) for name, content in whole.items()},
        "log_lines_compared_a_run": {name: len(content["log"]) for name, content in whole.items()},
        "differences": found,
    }


@pytest.mark.attack
def test_a_run_killed_at_any_moment_continues_bit_for_bit(
    tmp_path: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    images, kills, kills_a_run = (IMAGES, 50, 1000) if minutes else (FEW, 4, 2)
    record = attack(tmp_path, images, kills, kills_a_run, 60 * minutes, seed)
    keep_record("kill_and_resume", record)
    print(json.dumps(record, indent=1))
    assert record["kills"] >= kills
    assert min(record["tensors_compared_a_run"].values()) > 100
    assert record["differences"] == []
