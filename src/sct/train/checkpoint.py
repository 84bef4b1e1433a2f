"""Checkpoints: whole, atomic, and verified when read."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from sct.errors import UserError

KEPT = 2


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the destination, flush, then rename: the file is the old one or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `folder/step-NNNNNNNN.pt` and remove all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:08d}.pt"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    for old in found(folder)[:-KEPT]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))


def load_newest(folder: Path, device: torch.device | str) -> tuple[dict[str, Any], list[Path]]:
    """The newest readable checkpoint, and the torn ones that were passed over.

    Raises UserError where there is none.
    """
    torn: list[Path] = []
    for path in reversed(found(folder)):
        try:
            return torch.load(path, map_location=device, weights_only=True), torn
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
            torn.append(path)
    raise UserError("there is no checkpoint to continue from", str(folder), "start without --resume")
