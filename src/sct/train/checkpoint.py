"""Checkpoints: whole, atomic, and verified when read."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from sct.files import atomic_file

KEPT = 2


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `folder/step-NNNNNNNN.pt` and remove all but the newest two."""
    path = folder / f"step-{state['step']:08d}.pt"
    with atomic_file(path) as file:
        torch.save(state, file)
    for old in found(folder)[:-KEPT]:
        old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", p.name))


def load_newest(folder: Path, device: torch.device | str) -> tuple[dict[str, Any] | None, list[Path]]:
    """The newest readable checkpoint (None: there is none), and the torn ones that were passed over."""
    torn: list[Path] = []
    for path in reversed(found(folder)):
        try:
            return torch.load(path, map_location=device, weights_only=True), torn
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
            torn.append(path)
    return None, torn
