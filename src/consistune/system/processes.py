"""The processes of a run: one, or as many as torchrun or `accelerate launch` started.

A step's batch does not depend on their number. Each process draws all random numbers of the batch
(`objectives.Draws`) and computes a share of its losses; the gradients are averaged.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from consistune.errors import UserError

OPTIONAL_HEADS = ("logvar", "map_augment")
"""Parameters that an objective need not use: for a model that has some, DDP looks for unused parameters."""
BACKENDS = {"cuda": "cuda:nccl,cpu:gloo"}
"""What carries tensors between processes, by device. NCCL refuses the CPU's, which evaluations sum."""
TIMEOUT = timedelta(hours=2)
"""The longest wait of one process for another; all others wait while the first one measures a model."""


def launched_processes() -> int:
    """The number of processes that the launcher started, before they have joined. Raises UserError."""
    count = os.environ.get("WORLD_SIZE") or "1"
    if not count.isascii() or not count.isdecimal() or int(count) < 1:
        what = f"{count[:80]!a} is no number of processes"
        raise UserError(what, "WORLD_SIZE", "unset it, or start with torchrun or accelerate launch")
    return int(count)


def rank_and_count() -> tuple[int, int]:
    """This process's rank and the number of processes that have joined: (0, 1) outside torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def lost_process(error: BaseException) -> bool:
    """Whether an error says that another process of the run is gone: gloo and NCCL have no type for it."""
    if os.environ.get("WORLD_SIZE", "1") in ("", "1"):
        return False
    known = isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )
    return known or (error.__cause__ is not None and lost_process(error.__cause__))


@dataclass(frozen=True)
class Processes:
    """This process's rank among all processes, and the device it computes on."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls, device: torch.device) -> "Processes":
        """Join the processes that the launcher started; on `cuda` each gets a card of its own.

        Must be called before anything is put on a device, because it chooses the card.
        """
        if launched_processes() == 1:
            return cls(device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        distributed.init_process_group(BACKENDS.get(device.type, "gloo"), timeout=TIMEOUT)
        return cls(device, distributed.get_rank(), distributed.get_world_size())

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def parts(self, batch: int, most: int | None) -> list[slice]:
        """The rows of this process's share of a batch, in parts of at most `most` (None: in one part)."""
        share = batch // self.count
        first, step = self.rank * share, min(most or share, share)
        return [slice(i, min(i + step, first + share)) for i in range(first, first + share, step)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """The largest over all processes, element by element, in place."""
        if self.count > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        high = torch.tensor([number, -number], device=self.device)
        if self.count > 1:
            distributed.all_reduce(high, distributed.ReduceOp.MAX)
        return bool(high[0] == -high[1])

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            distributed.barrier()

    def close(self) -> None:
        """Leave the other processes."""
        if self.count > 1:
            distributed.destroy_process_group()

    def replicated(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes after each backward (DDP)."""
        if self.count == 1:
            return module
        optional = any(head in name for name, _ in module.named_parameters() for head in OPTIONAL_HEADS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions renamed the argument
            # Buffers are constants, the same in every process.
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=optional)


def pending(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """The context of a micro-batch's backward: gradients are exchanged only with the last micro-batch."""
    if last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()
