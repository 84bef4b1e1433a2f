"""A run's folder on disk: how it begins, and which run may be continued in it.

recipe.yaml        the resolved recipe            metrics.jsonl   a line every log_images
environment.json   versions, hardware, command    log.txt         messages of the run
checkpoints/       the newest `keep`              tensorboard/    the same scalars
snapshots/         averaged models at shares of training, for guidance
ema/               snapshots of power-function averages, for averages of other lengths (posthoc)
best/              the averaged model that measured best
samples/           images from the same noise, as training goes on
.lock              held by the program that trains here
model/             the averaged model, when the run is done
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from consistune.errors import UserError
from consistune.system.files import write_atomically
from consistune.system.host import machine, package_version
from consistune.system.processes import launched_processes

RECIPE = "recipe.yaml"
MACHINE_KEYS = ("microbatch", "shard", "compile", "channels_last", "checkpointing", "trackers", "keep")
"""Keys of `train` that may change when a run is continued, for example on another machine."""


def create(folder: Path, recipe_text: str) -> None:
    """Begin a run's folder. Raises UserError where there is a run already."""
    if (folder / RECIPE).exists():
        raise UserError(
            "a run is there already", str(folder), "add --resume to continue it, or choose another --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "consistune": package_version(),
        "command": sys.argv,
        "processes": launched_processes(),
        **machine(),
    }
    write_atomically(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_atomically(folder / RECIPE, recipe_text)


def check_continuation(folder: Path, recipe_text: str) -> None:
    """Raises UserError where there is no run to continue, or a run of another recipe."""
    saved = folder / RECIPE
    if not saved.is_file():
        raise UserError("there is no run to continue", str(folder), "start it without --resume")
    if _method(saved.read_text(encoding="utf-8")) != _method(recipe_text):
        raise UserError(
            "the recipe differs from the one this run began with",
            str(saved),
            f"continue with `consistune train {folder} --resume`, or choose another --out",
        )


def _method(recipe_text: str) -> Any:
    """A recipe without its MACHINE_KEYS."""
    recipe = yaml.safe_load(recipe_text)
    train = {key: value for key, value in recipe.get("train", {}).items() if key not in MACHINE_KEYS}
    return {**recipe, "train": train}


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process did not finish writing."""
    for pattern in (".*.partial", ".*.old", ".step-*"):
        for path in folder.rglob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
