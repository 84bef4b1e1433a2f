"""What the processes of a test do: train small runs, in a spawned interpreter each."""

import os
import socket
from pathlib import Path
from typing import Any

import torch

from sct.plan import make_plan
from sct.recipe import read_recipe
from sct.train.loop import Trainer
from sct.train.processes import Processes

MLP = "network={kind: mlp, width: 16, blocks: 2, dropout: 0.0}"
EDM2 = (
    "network={kind: edm2, model_channels: 8, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [4], "
    "channels_per_head: 8}"
)
FRESH = ("start_from=null", "dropout=0.0", "optimizer.lr=3e-3")
SIZES = ("train.images=384", "train.batch=64", "pairs.gap.every_images=128")
RUNS: dict[str, tuple[str, ...]] = {
    "class references": ("digits-sct", MLP, *FRESH, *SIZES),
    "batch references": ("digits-sct", MLP, *FRESH, *SIZES, "estimator.reference=batch"),
    "few references": ("digits-sct", MLP, *FRESH, *SIZES, "estimator.size=8"),
    "flips, hidden labels": (
        "digits-sct", MLP, *FRESH, *SIZES, "train.x_flip=true", "train.label_dropout=0.3",
        "train.clip_norm=0.5", "optimizer.lr_schedule={kind: constant}",
    ),
    "average target": ("digits-cm", MLP, "start_from=null", "train.images=384", "train.batch=64"),
    "edm2": ("digits-sct", EDM2, "precond={kind: edm2}", *FRESH, *SIZES),
    "diffusion": ("digits-edm", MLP, "train.images=384", "train.batch=64"),
}  # fmt: skip
DROPOUT = ("digits-sct", MLP.replace("0.0", "0.3"), "start_from=null", *SIZES)


def trainer_of(words: tuple[str, ...], processes: Processes | None = None) -> Trainer:
    torch.manual_seed(0)
    return make_plan(read_recipe(words[0], words[1:])).trainer(processes=processes)


def run(words: tuple[str, ...], processes: Processes | None = None) -> dict[str, Any]:
    """Losses and gradient norms of a run, and its whole state at the end."""
    trainer = trainer_of(words, processes)
    reports = list(trainer.steps())
    return {
        "losses": [report.loss for report in reports],
        "norms": [report.gradient_norm for report in reports],
        "state": trainer.state_dict(),
        "averaged": trainer.averaged.state_dict(),
    }


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def worker(rank: int, count: int, port: str, jobs: dict[str, tuple[str, ...]], out: Path) -> None:
    """One of `count` processes: every job in turn; each writes what it found."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = Processes.start(torch.device("cpu"))
    torch.save({name: run(words, processes) for name, words in jobs.items()}, out / f"{rank}.pt")
    processes.close()


def together(count: int, jobs: dict[str, tuple[str, ...]], out: Path) -> list[dict[str, dict[str, Any]]]:
    """The jobs on `count` processes over gloo → what each process found."""
    torch.multiprocessing.spawn(worker, (count, free_port(), jobs, out), nprocs=count)
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(count)]
