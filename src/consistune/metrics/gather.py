"""What the processes of an evaluation bring together. Process r of w has the samples r, r + w, …"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from consistune.metrics.feature_file import FeatureFile, feature_file

GATHERED_ROWS = 1024
"""Rows that each process sends at a time."""


def summed(values: Tensor, world: int) -> Tensor:
    """The sum over all processes; with one process the values themselves."""
    if world > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gathered(rows: Tensor, total: int, world: int) -> Tensor:
    """The rows [total, ...] of all processes, in the order of the samples' indices."""
    if world == 1:
        return rows
    whole = torch.empty(total, *rows.shape[1:], dtype=rows.dtype)
    for rank, part in enumerate(gather_all_tensors(rows)):
        whole[rank::world] = part
    return whole


def gathered_file(own: Path, path: Path, total: int, world: int) -> FeatureFile:
    """The rows of all processes' files `own`, written to `path` in the order of the samples' indices.

    With one process its own file as it is. GATHERED_ROWS rows of every process are a run of consecutive
    samples, so no process ever holds all rows.
    """
    rows = FeatureFile(own)
    if world == 1:
        return rows
    with feature_file(path, total, rows.shape[1]) as file:
        for start in range(0, -(-total // world), GATHERED_ROWS):
            part = rows[slice(start, start + GATHERED_ROWS)]
            count = min(world * GATHERED_ROWS, total - world * start)
            file.append(gathered(part, count, world))
    return FeatureFile(path)
