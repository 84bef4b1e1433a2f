"""How long the program takes to begin: processes of its own, and what their imports cost."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consistune.bench.timing import Timing
from consistune.nn import store

HELP = ("--help",)
IMPORT = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|( *)(\S+)")


def command(arguments: Sequence[str], rounds: int) -> Timing:
    """Wall-clock seconds of `consistune …` from a cold process. The first call is not counted.

    Raises RuntimeError where it fails.
    """
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "consistune", *arguments], capture_output=True, check=False
        )
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            raise RuntimeError(f"consistune {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return Timing(tuple(seconds[1:]))


def imports(arguments: Sequence[str], at_least: float = 0.02) -> dict[str, float]:
    """Seconds of each package that `consistune …` imports, its own imports included; small ones left out."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "consistune", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    packages: dict[str, float] = {}
    for _, total, _, name in IMPORT.findall(done.stderr):
        package = name.partition(".")[0]
        packages[package] = max(packages.get(package, 0.0), int(total) / 1e6)
    kept = {name: seconds for name, seconds in packages.items() if seconds >= at_least}
    return dict(sorted(kept.items(), key=lambda item: -item[1]))


def digits_model(folder: Path) -> Path:
    """A model folder of the digits' network with fresh weights: start-up asks for no more."""
    network = {"kind": "mlp", "image_shape": (1, 8, 8), "num_classes": 10}
    model = store.build({"network": network, "precond": {"kind": "edm"}})
    store.save(model, folder / "model")
    return folder / "model"


def measured(folder: Path, rounds: int) -> dict[str, Any]:
    """`consistune --help` and `consistune sample` of a digits model, for JSON."""
    picture = str(folder / "samples.png")
    sample = ("sample", str(digits_model(folder)), "--out", picture, "--device", "cpu")
    runs = {"consistune --help": HELP, "consistune sample": sample}
    times = {name: command(arguments, rounds) for name, arguments in runs.items()}
    profile = {name: imports(arguments) for name, arguments in runs.items()}
    return {
        "times": {name: timing.record() for name, timing in times.items()},
        "imports": {
            name: {package: round(seconds, 3) for package, seconds in packages.items()}
            for name, packages in profile.items()
        },
        "interpreter": statistics.median(_interpreter() for _ in range(rounds)),
    }


def _interpreter() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return round(time.perf_counter() - start, 4)
