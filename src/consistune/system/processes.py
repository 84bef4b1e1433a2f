"""The processes of a run: one, or as many as torchrun or `accelerate launch` started.

The batch of a step is the same whatever their number. Each process knows all that is random in it
(`objectives.Draws`), computes a share of its losses, and the gradients are summed.
"""

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

MAY_LIE_IDLE = ("logvar", "map_augment")
"""Heads that an objective need not use: where there are any, DDP looks for parameters without a gradient."""
PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: while the first one measures a model, the others do."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is, and the device it computes on."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls, device: torch.device) -> "Processes":
        """Join the other processes, each with a card of its own on `cuda`; alone where there are none.

        To be called before anything is put on a device: with several cards it decides which is ours.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(device)
        from accelerate import PartialState  # here: it takes seconds, and one process does without

        state = PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
        return cls(state.device, state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def parts(self, batch: int, most: int | None) -> list[slice]:
        """The rows of a batch that are this process's share, in pieces of at most `most`."""
        share = batch // self.count
        first, step = self.rank * share, min(most or share, share)
        return [slice(i, min(i + step, first + share)) for i in range(first, first + share, step)]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, number: int) -> bool:
        """Whether all processes have the same number."""
        high = torch.tensor([number, -number], device=self.device)
        if self.count > 1:
            distributed.all_reduce(high, distributed.ReduceOp.MAX)
        return bool(high[0] == -high[1])

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def close(self) -> None:
        """Part from the other processes."""
        if self.count > 1:
            distributed.destroy_process_group()

    def replicated(self, module: nn.Module) -> nn.Module:
        """The module, its gradients averaged over the processes after each backward (DDP)."""
        if self.count == 1:
            return module
        idle = any(word in name for name, _ in module.named_parameters() for word in MAY_LIE_IDLE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions have another word for the same
            # Buffers are constants, alike in every process.
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=idle)


def pending(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Where a backward only adds to the gradients: they are exchanged with the last micro-batch."""
    if last or not isinstance(module, DistributedDataParallel):
        return nullcontext()
    return module.no_sync()
