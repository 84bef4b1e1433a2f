"""A run's folder on disk: how it begins, and which run may be continued in it.

recipe.yaml        the resolved recipe            metrics.jsonl   a line every log_images
environment.json   versions, hardware, command    log.txt         messages of the run
checkpoints/       the newest `keep`              tensorboard/    the same scalars
snapshots/         averaged models at shares of training, for guidance
ema/               snapshots of power-function averages, for averages of other lengths (posthoc)
best/              the averaged model that measured best
objective.txt      the objective and, in weights.txt, the weights that were given where Python began the run
samples/           images from the same noise, as training goes on
.lock              held by the program that trains here
model/             the averaged model, when the run is done
"""

import hashlib
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.nn import store
from consistune.system.files import write_atomically
from consistune.system.host import machine, package_version
from consistune.system.own import is_own
from consistune.system.processes import launched_processes
from consistune.training import checkpoint
from consistune.training.metrics_file import MetricsFile
from consistune.training.options import share_name

RECIPE, ENVIRONMENT = "recipe.yaml", "environment.json"
OWN_FOLDERS = ("checkpoints", "snapshots", "ema", "samples")
"""The folders in which a run writes file by file, or folder by folder."""
NAMES = (ENVIRONMENT, "metrics.jsonl", "log.txt", "tensorboard", "best", "model", *OWN_FOLDERS)
LATER_LINES = re.compile(r"\S+ \S+ ((?:stopped at|done:) .*)")
"""What log.txt says when a state was stored after the start."""
MACHINE_KEYS = ("microbatch", "shard", "compile", "channels_last", "checkpointing", "trackers", "keep")
"""Keys of `train` that may change when a run is continued, for example on another machine."""


def check_new(folder: Path) -> None:
    """Raises UserError where there is a run, or another's file of its names."""
    if (folder / RECIPE).exists():
        raise UserError(
            "a run is there already", str(folder), "add --resume to continue it, or choose another --out"
        )
    # A kill may have left the environment's file without a recipe.
    if not is_own(folder / ENVIRONMENT, ("consistune", "command")):
        found = [name for name in NAMES if (folder / name).exists()]
        if found:
            what = f"{found[0]} is already there, and belongs to no run"
            raise UserError(what, str(folder), "choose another --out, or move it away")


def create(folder: Path, recipe_text: str) -> None:
    """Begin a run's folder. Raises UserError as `check_new` does."""
    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "consistune": package_version(),
        "command": sys.argv,
        "processes": launched_processes(),
        **machine(),
    }
    write_atomically(folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
    write_atomically(folder / RECIPE, recipe_text)


@contextmanager
def noted(path: Path, own: str) -> Iterator[str]:
    """Note in a file of a run's folder, which the block opens, what it begins with; "": nothing.

    The block gets what the run began with: `own` where it begins. It is noted before, and no note is left
    where no run has begun.
    """
    recipe, before = path.with_name(RECIPE), own
    if recipe.exists():
        before = path.read_text(encoding="utf-8") if path.exists() else ""
    elif own:
        write_atomically(path, own)
    try:
        yield before
    finally:
        if own and not recipe.exists():
            path.unlink(missing_ok=True)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's tensors and their names, and a line's end."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            sha.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest() + "\n"


def read_recipe_of(run: Path) -> dict[str, Any]:
    """The resolved recipe in a run's folder. Raises UserError where there is none."""
    try:
        recipe = yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
        kinds = {"train": dict, "objective": str, "data": str}
        if isinstance(recipe, dict) and all(isinstance(recipe.get(key), kind) for key, kind in kinds.items()):
            return recipe
        what = f"{RECIPE} is no recipe"
    except FileNotFoundError:
        what = f"there is no run: {RECIPE} is missing"
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        what = f"{RECIPE} cannot be read: {error}"
    raise UserError(what, str(run), "give a run's folder, such as runs/NAME")


def check_continuation(folder: Path, recipe_text: str, extend: bool = False) -> None:
    """Raises UserError where there is no run to continue, or a run of another recipe.

    extend: train.images may differ.
    """
    saved = folder / RECIPE
    if not saved.is_file():
        raise UserError("there is no run to continue", str(folder), "start it without --resume")
    free = (*MACHINE_KEYS, "images") if extend else MACHINE_KEYS
    if _method(read_recipe_of(folder), free) != _method(yaml.safe_load(recipe_text), free):
        raise UserError(
            "the recipe differs from the one this run began with",
            str(saved),
            f"continue with `consistune train {shlex.quote(str(folder))} --resume`, or choose another --out",
        )


def check_place(folder: Path, recipe_text: str, *, resume: bool, extend: bool = False) -> None:
    """Raises UserError as a run would that begins in a folder, or with `resume` goes on; writes nothing."""
    if resume:
        check_continuation(folder, recipe_text, extend)
    else:
        check_new(folder)


def check_end(seen: int, end: int) -> None:
    """Raises UserError where a run that has seen so many images cannot be continued to `end` of them."""
    if seen >= end:
        raise UserError(f"the run has seen {seen:,} images already", "--until", "give a larger number")


def rename_snapshots(folder: Path, images: int) -> None:
    """Name the snapshots of a run that is continued to so many images by their shares of these.

    They are first named by the images that they had seen. The recipe then gets the new number, and the
    snapshots their new names. So a kill between any two renames leaves names of which each is right.
    """
    recipe, place = read_recipe_of(folder), folder / "snapshots"
    if recipe["train"]["images"] != images:
        for path in list(place.glob("*%")):
            share = _number(path.name.removesuffix("%")) / 100
            if share_name(share) == path.name:
                path.rename(place / f".{share * recipe['train']['images']!r}-images")
        recipe["train"]["images"] = images
        write_atomically(folder / RECIPE, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
    for path in list(place.glob(".*-images")):
        share = _number(path.name[1:].removesuffix("-images")) / images
        if share > 0:
            path.rename(place / share_name(share))


def _number(text: str) -> float:
    """The number that a text is; NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def progress(folder: Path) -> str:
    """What in a run's folder shows that images were trained; "" where there is nothing."""
    records = MetricsFile(folder).records()
    found = [f"metrics.jsonl up to {records[-1]['images']:,} images"] if records else []
    for name in ("checkpoints", "snapshots", "ema", "best"):
        number = len(list((folder / name).iterdir())) if (folder / name).is_dir() else 0
        if number:
            found.append(f"{number} file(s) in {name}" if name in OWN_FOLDERS else f"{name}/")
    return ", ".join(filter(None, [*found, stored_later(folder)]))


def stored_later(folder: Path) -> str:
    """What in a run's folder shows that a checkpoint after that of the start was there; "": nothing."""
    found = [path.name for path in checkpoint.paths(folder / "checkpoints") if checkpoint.step_of(path)]
    found += [f"samples/{path.name}" for path in sorted(folder.glob("samples/*.png")) if path.stem.isdigit()]
    found += ["model/"] if (folder / "model").is_dir() else []
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    found += [f"log.txt: {line[1]}" for line in map(LATER_LINES.fullmatch, lines) if line]
    return ", ".join(found[-3:])


def _method(recipe: dict[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """A recipe without those keys of `train`."""
    train = {key: value for key, value in recipe.get("train", {}).items() if key not in free}
    return {**recipe, "train": train}


FILES = r"recipe\.yaml|(environment|config)\.json|metrics\.jsonl|(log|objective|weights)\.txt"
WRITTEN = rf"{FILES}|model|best|[\d.e-]+%|\d{{12}}(\.png|-[\d.]+)|\.step-\d{{8,}}"
"""The names that a run gives its files and folders."""
PARTIAL = re.compile(rf"\.({WRITTEN})\.\d+\.partial|\.step-\d{{8,}}")
"""The names of what this program has begun to write: `system.files`, `nn.store`, `training.checkpoint`."""


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process did not finish writing, from the folder and the folders of the run in it.

    A model whose replacement was broken off between two renames gets its name back.
    """
    for place in (folder, *(folder / name for name in OWN_FOLDERS)):
        if place.is_symlink() or not place.is_dir():
            continue
        for path in list(place.iterdir()):
            if path.is_symlink():
                continue
            if PARTIAL.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            elif path.name.startswith(".") and path.name.endswith(".old") and store.is_model_folder(path):
                _end_replacement(path)


def _end_replacement(old: Path) -> None:
    """Give an old model its name back, or remove it where the new model has that name already."""
    folder = old.with_name(old.name[1:].removesuffix(".old"))
    if folder.exists():
        shutil.rmtree(old)
    else:
        old.rename(folder)
