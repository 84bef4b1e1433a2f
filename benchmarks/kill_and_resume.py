"""A run that is killed again and again, against the unbroken one: every number it leaves must be the same.

    python benchmarks/kill_and_resume.py [--kills 50]       a few minutes on one core

A small SCT run and a consistency-training run (with an averaged target), in turn, on the embedded digits,
with dropout, flips, hidden labels, snapshots, pictures and a measure, and a checkpoint every other step, are
killed with SIGKILL after a random time and continued until they finish; then the next begins, until there
were so many kills. Each finished folder is compared, bit for bit, with that of a run which nobody disturbed:
weights, averages, optimizer, counters, stored models, pictures, and the log (but for speed and memory).
What lay half-written in the folder after a kill tells what it interrupted.
Writes benchmarks/results/kill_and_resume.json and its paragraph in docs/training.md.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import accelerate.tracking  # noqa: F401 - here, so that the children have it
import torch
import torch.utils.tensorboard
from safetensors.torch import load_file

from consistune.data.images import digits
from consistune.models import draw_sheet
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.system.files import write_atomically
from consistune.train import checkpoint
from consistune.train.run import RunFolder
from tables import fill

RESULTS = Path(__file__).parent / "results" / "kill_and_resume.json"
RECIPES = ("digits-sct", "digits-cm")
KEYS = (
    "start_from=null",
    "network={kind: mlp, width: 128, blocks: 2, dropout: 0.2}",
    "train={images: 3_840, batch: 64, ema: [0.99, 0.9], x_flip: true, label_dropout: 0.1, log_images: 64, "
    "checkpoint_images: 128, evaluate_images: 192, snapshots: [0.25, 0.5, 0.75]}",
)
UNREPEATABLE = ("images_per_second", "peak_memory_gib")


def measure(model: Preconditioned) -> dict[str, float]:
    """Something that changes as training goes on and falls now and then."""
    return {"weight": float(sum(p.double().sum() for p in model.parameters()).sin())}


def train(name: str, folder: Path) -> None:
    """Begin or continue the run in a folder."""
    recipe = read_recipe(name, KEYS)
    resume = (folder / "recipe.yaml").exists()
    run = RunFolder(folder, to_yaml(recipe), resume=resume, draw=draw_sheet, evaluate=measure)
    trainer = make_plan(recipe).trainer()
    if resume:
        run.resume(trainer)
    for _ in run.steps(trainer):
        pass


def in_a_child(name: str, folder: Path, kill_after: float | None) -> bool:
    """Train in a process of its own, killed after so many seconds; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            train(name, folder)
        except BaseException as error:
            print(f"{folder}: {type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError("a run failed")
    return os.WIFSIGNALED(status)


def interrupted_writing(folder: Path) -> str:
    """What a killed process was writing, by what lies about."""
    hidden = [p.relative_to(folder) for p in folder.rglob(".*")]
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


def page(result: dict[str, Any]) -> str:
    """What docs/training.md says of it."""
    writing = {word: n for word, n in result["interrupted_while_writing"].items() if word != "nothing"}
    places = ", ".join(f"{word} {n}" for word, n in writing.items())
    compared = " and ".join(str(n) for n in result["tensors_compared_a_run"].values())
    return (
        f"{result['kills']} kills with SIGKILL at random moments of {len(result['runs'])} runs, "
        f"{sum(writing.values())} of them while a file was half-written ({places}). The finished runs and "
        f"the unbroken ones, {compared} tensors, their pictures and every line of their logs: "
        f"**{len(result['differences'])} differences.**\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill_and_resume"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    digits()  # once, for all children
    dice, folder = random.Random(arguments.seed), arguments.folder
    shutil.rmtree(folder, ignore_errors=True)
    whole, seconds = {}, {}
    for name in RECIPES:
        began = time.perf_counter()
        in_a_child(name, folder / f"{name}-unbroken", None)
        seconds[name] = time.perf_counter() - began
        whole[name] = content(folder / f"{name}-unbroken")
    interrupted: Counter[str] = Counter()
    runs, found = [], list[str]()
    while sum(run["kills"] for run in runs) < arguments.kills:
        name = RECIPES[len(runs) % len(RECIPES)]
        path, kills = folder / f"{name}-{len(runs)}", 0
        while in_a_child(name, path, dice.uniform(0, seconds[name])):
            kills += 1
            interrupted[interrupted_writing(path)] += 1
        found += differences(whole[name], content(path), path.name)
        runs.append({"recipe": name, "kills": kills})
        print(f"{path}: {kills} kills, {len(found)} differences so far", flush=True)
    result = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "seconds_unbroken": seconds,
        "kills": sum(run["kills"] for run in runs),
        "runs": runs,
        "interrupted_while_writing": dict(interrupted.most_common()),
        "tensors_compared_a_run": {name: tensors(content) for name, content in whole.items()},
        "log_lines_compared_a_run": {name: len(content["log"]) for name, content in whole.items()},
        "differences": found,
    }
    write_atomically(RESULTS, json.dumps(result, indent=1) + "\n")
    fill("training.md", "kill_and_resume", page(result))
    print(json.dumps(result, indent=1))
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
