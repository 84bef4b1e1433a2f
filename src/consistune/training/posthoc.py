"""Averages of any length, made after training from snapshots of a few (EDM2, 2312.02696, §3.2).

A power-function average taken at t images weighs the weights at τ by p(τ) = (γ+1)·τ^γ/t^(γ+1), τ in [0, t].
The combination Σ X_i p_i of the snapshots' profiles that is nearest in L2 to a target profile p solves
A·X = b with A_ij = ⟨p_i, p_j⟩ and b_i = ⟨p_i, p⟩. The same combination of the snapshots approximates the
average that training would have kept; more snapshots of more lengths make the error smaller. EDM2 keeps two
lengths, 0.05 and 0.10, every 8 million images.

RUN/ema/config.json                    the model that the weights belong to
RUN/ema/IMAGES-STD-SHA256.safetensors  a snapshot: parameters and buffers

The name of a snapshot holds the first 16 hexadecimal digits of the file's SHA-256, as a checkpoint's does;
files of versions before 0.2 have none.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.system.files import file_digest, write_atomically
from consistune.training.ema import PowerFunction, SnapshotPrecision, exponent_of

FOLDER = "ema"
NAME = re.compile(r"(\d+)-(0?\.\d+)(?:-([0-9a-f]{16}))?\.safetensors")


@dataclass(frozen=True, order=True)
class Profile:
    """A power-function average of relative length `std`, taken when `images` had been seen."""

    images: float
    std: float


def overlaps(a: Iterable[Profile], b: Iterable[Profile]) -> NDArray[np.float64]:
    """⟨p_a, p_b⟩ = ∫ p_a p_b dτ for every pair, float64 [len(a), len(b)].

    With t = min(t_a, t_b), T = max(t_a, t_b), γ the exponent that belongs to T:
    (γ_a + 1)(γ_b + 1)/(γ_a + γ_b + 1)·(t/T)^γ/T.
    """
    (t_a, g_a), (t_b, g_b) = (_columns(profiles) for profiles in (a, b))
    t_a, g_a = t_a[:, None], g_a[:, None]
    later = np.where(t_a < t_b, g_b, g_a)
    shape = (g_a + 1) * (g_b + 1) / (g_a + g_b + 1)
    return shape * (np.minimum(t_a, t_b) / np.maximum(t_a, t_b)) ** later / np.maximum(t_a, t_b)


def _columns(profiles: Iterable[Profile]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = np.array([(p.images, exponent_of(p.std)) for p in profiles], dtype=np.float64)
    return pairs[:, 0], pairs[:, 1]


def coefficients(snapshots: list[Profile], target: Profile) -> NDArray[np.float64]:
    """X with A·X = b, divided by its sum, float64 [snapshots]; no snapshot may be later than the target."""
    solution = np.linalg.solve(overlaps(snapshots, snapshots), overlaps(snapshots, [target])[:, 0])
    return solution / solution.sum()


# --- snapshots on disk -------------------------------------------------------------------------------


def save_snapshot(
    run: Path, average: PowerFunction, model: Preconditioned, images: int, precision: SnapshotPrecision
) -> None:
    """Write the averaged model of a power-function average into the run's folder."""
    folder = run / FOLDER
    write_atomically(folder / store.CONFIG, _config(model))
    weights = {name: _stored(value, precision) for name, value in model.state_dict().items()}
    stem = f"{images:012d}-{np.format_float_positional(float(f'{average.std:g}'), trim='-')}"
    partial = folder / f".{stem}.{os.getpid()}.partial"
    try:
        store.write_weights(weights, partial)
        path = partial.replace(folder / f"{stem}-{_digest(partial)}.safetensors")
    finally:
        partial.unlink(missing_ok=True)
    for old in folder.glob("*.safetensors"):  # of before a return to a checkpoint
        if old != path and _profile(old) == _profile(path) is not None:
            old.unlink()


def _digest(path: Path) -> str:
    return file_digest(path)[:16]


def _config(model: nn.Module) -> str:
    return json.dumps(store.describe(model), indent=2) + "\n"  # type: ignore[arg-type]


def _stored(value: Tensor, precision: SnapshotPrecision) -> Tensor:
    """The value on the CPU; in half precision where that is asked for and its range suffices."""
    value = value.detach().cpu().contiguous()
    if precision == "fp16" and value.is_floating_point():
        half = value.half()
        return half if bool(half.isfinite().all()) else value
    return value


def _profile(path: Path) -> Profile | None:
    match = NAME.fullmatch(path.name)
    return Profile(int(match[1]), float(match[2])) if match else None


def snapshots(run: Path) -> dict[Profile, Path]:
    """The snapshot files of a run by their profiles, in the order of (images, std)."""
    found = {path: _profile(path) for path in (run / FOLDER).glob("*.safetensors")}
    return dict(sorted((profile, path) for path, profile in found.items() if profile is not None))


def reconstruct(run: Path, std: float, at: int | None = None) -> Preconditioned:
    """The average of relative length std at `at` images (None: at the end), from a run's snapshots.

    One tensor at a time is read from all files, summed in float64 and rounded once, so that memory holds the
    result and no snapshot. Buffers are the latest snapshot's.

    Raises UserError where there are no snapshots, or none at that point, and for a damaged one.
    """
    stored = snapshots(run)
    if not stored:
        raise UserError(
            "the run kept no snapshots of power-function averages",
            str(run),
            "train with averages of kind power in train.ema, and train.ema_snapshot_images",
        )
    times = sorted({int(profile.images) for profile in stored})
    at = times[-1] if at is None else at
    if at not in times:
        raise UserError(
            f"no snapshot was taken at {at:,} images", "--at", f"there are: {', '.join(map(str, times))}"
        )
    try:
        target = Profile(at, std)
        exponent_of(std)
    except ValueError as error:
        raise UserError(str(error), "--std") from error
    used = {profile: path for profile, path in stored.items() if profile.images <= at}
    for path in used.values():
        match = NAME.fullmatch(path.name)
        if match is not None and match[3] not in (None, _digest(path)):
            what = "the snapshot is damaged: its SHA-256 is not that in its name"
            raise UserError(what, str(path), "copy it again, or remove it to do without it")
    shares = coefficients(list(used), target)
    return _combined(run / FOLDER, list(used.values()), shares, {"std": std, "images": at})


@torch.no_grad()
def _combined(
    folder: Path, paths: list[Path], shares: NDArray[np.float64], origin: dict[str, Any]
) -> Preconditioned:
    try:
        config = json.loads((folder / store.CONFIG).read_text(encoding="utf-8"))
        model = store.build(config, str(folder / store.CONFIG))
        files = [safe_open(path, framework="pt") for path in paths]
        parameters = dict(model.named_parameters())
        for name, value in model.state_dict().items():
            if name in parameters:
                total = torch.zeros(value.shape, dtype=torch.float64)
                for share, file in zip(shares.tolist(), files, strict=True):
                    total += share * file.get_tensor(name).double()  # type: ignore[no-untyped-call]
                value.copy_(total)
            else:
                value.copy_(files[-1].get_tensor(name))  # type: ignore[no-untyped-call]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the snapshots cannot be read: {error}", str(folder)) from error
    model.card = model.card.updated(ema=origin)
    return model.eval()
