"""How long the program takes to start, in processes of its own."""

import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from consistune.bench.timing import Timing, alternate
from consistune.nn import store


def commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """The measured commands: `--help`, and `sample` of a digits model with fresh weights in `folder`."""
    network = {"kind": "mlp", "image_shape": (1, 8, 8), "num_classes": 10}
    store.save(store.build({"network": network, "precond": {"kind": "edm"}}), folder / "model")
    sample = ("sample", str(folder / "model"), "--out", str(folder / "samples.png"), "--device", "cpu")
    return {"consistune --help": ("--help",), "consistune sample": sample}


def timed(commands: dict[str, tuple[str, ...]], rounds: int) -> dict[str, Timing]:
    """Wall-clock seconds of `consistune …` from a cold process. Raises RuntimeError where it fails."""
    return alternate({name: partial(run, words) for name, words in commands.items()}, rounds)


def run(words: Sequence[str], *options: str) -> str:
    """Run `python OPTIONS -m consistune WORDS`; what it writes to standard error."""
    command = [sys.executable, *options, "-m", "consistune", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"consistune {' '.join(words)}: {done.stderr.strip()}")
    return done.stderr
