"""What the processes of a test do: train small runs, in a spawned interpreter each."""

import copy
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.core.objectives import Draws, Objective
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.system.processes import Processes
from consistune.training import sharding
from consistune.training.loop import Trainer
from consistune.training.run import Interrupted, RunFolder
from tests.support.ports import free_port

Words = tuple[str, ...]


def mlp(dropout: float) -> str:
    return f"network={{kind: mlp, width: 16, blocks: 2, dropout: {dropout}}}"


EDM2 = (
    "network={kind: edm2, model_channels: 8, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [4], "
    "channels_per_head: 8}"
)
SIZES = ("train.images=384", "train.batch=64")
SCT = ("start_from=null", "dropout=null", "optimizer.lr=3e-3", "pairs.gap.every_images=128", *SIZES)
RUNS: dict[str, Words] = {
    "class references": ("digits-sct", mlp(0), *SCT),
    "batch references": ("digits-sct", mlp(0), *SCT, "estimator.reference=batch"),
    "few references": ("digits-sct", mlp(0), *SCT, "estimator.size=8"),
    "flips, hidden labels, clipping": (
        "digits-sct", mlp(0), *SCT, "train.x_flip=true", "train.label_dropout=0.3", "train.clip_norm=0.5",
    ),
    "average target": ("digits-cm", mlp(0), "start_from=null", *SIZES),
    "edm2, idle head": ("digits-sct", EDM2, "precond={kind: edm2}", *SCT),
    "edm2": ("digits-sct", EDM2, "precond={kind: edm2, logvar_channels: 0}", *SCT),
    "diffusion": ("digits-edm", mlp(0), *SIZES),
}  # fmt: skip
SHARDED = ("class references", "average target", "edm2")
# The branches that drop out begin at 0: they need larger steps to be seen.
DROPOUT: Words = ("digits-sct", mlp(0.3), *SCT, "optimizer.kind=adam", "optimizer.lr=1e-2")
STOPPED_AT = 3


def trainer_of(words: Words, processes: Processes | None = None) -> Trainer:
    return make_plan(read_recipe(words[0], words[1:])).trainer(processes=processes)


def run(words: Words, processes: Processes | None = None, start: Any = None) -> dict[str, Any]:
    """Losses and gradient norms of a run, and its whole state at the end."""
    trainer = trainer_of(words, processes)
    if start is not None:
        trainer.load_state_dict(copy.deepcopy(start))  # the processes share its memory
    reports = list(trainer.steps())
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "state": trainer.state_dict(),
        "averaged": trainer.averaged.state_dict(),
    }


def half_way(words: Words) -> dict[str, Any]:
    """The state of a run after half of its steps."""
    trainer = trainer_of(words)
    for report in trainer.steps():
        if report.images >= trainer.options.images // 2:
            break
    return trainer.state_dict()


def interrupted(words: Words, processes: Processes, path: Path) -> dict[str, int]:
    """A run whose last process alone gets a signal: where did each stop, with what status?"""
    recipe = read_recipe(words[0], words[1:])
    folder = RunFolder(path, to_yaml(recipe), resume=False, main=processes.main)
    steps = 0
    try:
        for report in folder.steps(make_plan(recipe).trainer(processes=processes)):
            steps = report.step
            if steps == STOPPED_AT - 1 and processes.rank == processes.count - 1:
                os.kill(os.getpid(), signal.SIGTERM)
    except Interrupted as stopped:
        return {"steps": steps, "status": stopped.status}
    return {"steps": steps, "status": 0}


class SickElsewhere(Objective):
    """An objective whose losses are NaN in one step, on the last process alone."""

    def __init__(self, trainer: Trainer, processes: Processes) -> None:
        self.trainer, self.inner = trainer, trainer.objective
        self.here = processes.rank == processes.count - 1

    def draw(self, *arguments: Any) -> Draws:
        return self.inner.draw(*arguments)

    def losses(self, *arguments: Any) -> Tensor:
        sick = self.here and self.trainer.step == 2
        return self.inner.losses(*arguments) * (torch.nan if sick else 1)


def skipping(words: Words, processes: Processes) -> dict[str, Any]:
    """A run of which one process alone meets a NaN: which steps did each take?"""
    trainer = trainer_of(words, processes)
    trainer.objective = SickElsewhere(trainer, processes)
    reports = list(trainer.steps())
    return {"finite": [report.finite for report in reports], "model": trainer.state_dict()["model"]}


def worker(rank: int, count: int, port: str, jobs: dict[str, Words], start: Any, out: Path) -> None:
    """One of `count` processes: every job in turn; each writes what it found."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = Processes.start(torch.device("cpu"))
    found: dict[str, Any] = {name: run(words, processes) for name, words in jobs.items()}
    for name in ("edm2", *(["sharded edm2"] if sharding.possible() else [])):
        found[f"continued {name}"] = run(jobs[name], processes, start)
    found["interrupted"] = interrupted(RUNS["class references"], processes, out / "run")
    found["skipping"] = skipping(RUNS["class references"], processes)
    if sharding.possible():
        found["skipping split"] = skipping((*RUNS["class references"], "train.shard=true"), processes)
    torch.save(found, out / f"{rank}.pt")
    processes.close()


def together(count: int, jobs: dict[str, Words], start: Any, out: Path) -> list[dict[str, Any]]:
    """The jobs on `count` processes over gloo → what each process found."""
    torch.multiprocessing.spawn(worker, (count, free_port(), jobs, start, out), nprocs=count)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(count)]
