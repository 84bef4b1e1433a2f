"""The bank: where the reference images are kept. In device memory, on the host, or split over processes.

The posterior mean asks a `Reference` for blocks of rows (METHOD §2). `device` holds the whole set as
uint8 where the queries are. `host` leaves it in the memory map, and a thread copies it block by block.
`sharded` gives every process an equal run of rows; the processes exchange their queries, and each sums over
its own rows for all of them. The result is that of one process with the whole set: to the bit for a class
whose rows all lie on one process, otherwise to the rounding of one more addition in fp32.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from consistune.core.noise import NoiseSchedule
from consistune.core.posterior.mean import LogPrior, OwnRows, Reference, Span
from consistune.core.posterior.streaming import Stream
from consistune.core.types import exact_device, moved

BankKind: TypeAlias = Literal["auto", "device", "host", "sharded"]
AUTO_SHARE = 0.5
"""`auto` gives the bank at most this share of the free memory."""


def make_bank(
    reference: Reference, device: torch.device | str, kind: BankKind = "auto", may_shard: bool = True
) -> Reference:
    """References on the host (in memory or mapped) → the same as a bank for queries on `device`.

    auto: `device` where the set fits in half of the free device memory (on the CPU: half of the machine's,
    and a memory-mapped set stays mapped); else `sharded` where a process's share fits and `may_shard`;
    else `host`.
    Raises ValueError for `sharded` in a run of one process, or of fewer images than processes.
    """
    device = exact_device(torch.empty(0, device=device).device)  # "cuda" is "cuda:0", as tensors report it
    processes = dist.get_world_size() if dist.is_initialized() else 1
    if kind == "auto":
        kind = _fitting_kind(reference.images.nbytes, processes if may_shard else 1, free_memory(device))
    own: dict[str, Any] = {name: getattr(reference, name) for name in ("offsets", "conditions", "scale")}
    if kind == "host":
        return HostReference(**own, images=reference.images, target=device)
    if kind == "device":
        return Reference(**own, images=reference.images.to(device))
    if processes == 1:
        raise ValueError(
            "a sharded bank needs several processes, and this run has one; "
            "start it with torchrun or accelerate launch, or use bank: device or host"
        )
    return ShardedReference.of(reference, device)


def _fitting_kind(size: int, processes: int, free: int) -> BankKind:
    if size <= AUTO_SHARE * free:
        return "device"
    return "sharded" if processes > 1 and size / processes <= AUTO_SHARE * free else "host"


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on the CPU all of the machine's, since what is mapped can be dropped."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows does not say it
        return sys.maxsize


@dataclass(frozen=True, kw_only=True)
class HostReference(Reference):
    """Images on the host, copied to the queries' device block by block, the next during the work on this one.

    Attributes:
        target: the queries' device.
    """

    target: torch.device

    @property
    def device(self) -> torch.device:
        return self.target

    @property
    def walks(self) -> bool:
        return self.target.type == "cpu" or len(self.offsets) > 2  # else every step would copy the whole set

    def here(self, rows: Tensor) -> Tensor:
        return moved(self.images[rows.to(self.images.device)], self.target)

    def blocks(self, spans: Sequence[Span]) -> Iterator[tuple[Tensor, Tensor]]:
        for (first, _), rows in zip(spans, prefetched(self.images, spans, self.target), strict=True):
            yield rows, self.squares(first, rows)


def prefetched(images: Tensor, spans: Sequence[Span], device: torch.device) -> Iterator[Tensor]:
    """images[first:last] on the device for each span in turn; a thread copies the next one meanwhile.

    There are two buffers: a block is valid until the next one is taken.
    """
    if not spans:
        return
    longest = max(last - first for first, last in spans)
    slots = [_Slot(images, longest, device) for _ in range(2)]
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Tensor] = thread.submit(slots[0].fetch, spans[0])
        for i in range(len(spans)):
            slot, rows = slots[i % 2], coming.result()
            if i + 1 < len(spans):
                coming = thread.submit(slots[(i + 1) % 2].fetch, spans[i + 1])
            slot.arrive()
            yield rows
            slot.leave()


class _Slot:
    """A buffer on the host, and on CUDA its twin on the card, filled on a stream of its own."""

    def __init__(self, images: Tensor, rows: int, device: torch.device) -> None:
        self.images, shape = images, (rows, *images.shape[1:])
        self.cuda = device.type == "cuda"
        self.host = torch.empty(shape, dtype=images.dtype, pin_memory=self.cuda)
        if self.cuda:
            self.card = torch.empty(shape, dtype=images.dtype, device=device)
            self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.used = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.used.record(torch.cuda.current_stream(device))

    def fetch(self, span: Span) -> Tensor:
        """Called in the thread: copy the rows to the host's buffer and start their copy to the card."""
        rows = slice(span[1] - span[0])
        if not self.cuda:
            return self.host[rows].copy_(self.images[slice(*span)])
        self.arrived.synchronize()  # until the host's buffer has been read
        self.host[rows].copy_(self.images[slice(*span)])
        with torch.cuda.stream(self.copies):
            self.copies.wait_event(self.used)  # until the card's buffer has been used
            self.card[rows].copy_(self.host[rows], non_blocking=True)
            self.arrived.record(self.copies)
        return self.card[rows]

    def arrive(self) -> None:
        """Later work on the device waits for the copy; the host does not wait."""
        if self.cuda:
            torch.cuda.current_stream(self.card.device).wait_event(self.arrived)

    def leave(self) -> None:
        """Call it when all work that reads the rows has been submitted to the device."""
        if self.cuda:
            self.used.record(torch.cuda.current_stream(self.card.device))


@dataclass(frozen=True, kw_only=True)
class ShardedReference(Reference):
    """A process's share of a set: rows cuts[rank] … cuts[rank + 1] − 1.

    All processes must call `sums` at the same time, with equally many queries.

    Attributes:
        images: the rows of this process.
        offsets: of the groups among this process's rows; a group that other processes hold is empty here.
        global_offsets: of the groups in the whole set.
        cuts: process p holds rows cuts[p] … cuts[p + 1] − 1.
    """

    global_offsets: tuple[int, ...]
    cuts: tuple[int, ...]

    @classmethod
    def of(cls, reference: Reference, device: torch.device) -> "ShardedReference":
        """This process's share of a set that all processes can read."""
        processes, rank = dist.get_world_size(), dist.get_rank()
        if len(reference) < processes:
            raise ValueError(f"{processes} processes cannot share {len(reference)} images; use bank: device")
        cuts = tuple(len(reference) * i // processes for i in range(processes + 1))
        first, last = cuts[rank], cuts[rank + 1]
        offsets = tuple(min(max(offset, first), last) - first for offset in reference.offsets)
        own = reference.images[first:last].to(device)
        scale, whole = reference.scale, reference.offsets
        return cls(own, offsets, scale=scale, global_offsets=whole, cuts=cuts)

    def take(self, rows: Tensor) -> Tensor:  # noqa: ARG002 - always refused
        raise ValueError("random references need every image, and this process holds only its share of them")

    def sums(
        self,
        x_t: Tensor,
        t: Tensor,
        schedule: NoiseSchedule,
        group: Tensor | None,
        log_prior: LogPrior | None,
        mirrored: bool,
        block: int | None,
        own: OwnRows | None = None,
    ) -> Stream:
        """All queries go to all processes, each sums over its rows, and the sums go back to be merged.

        Raises ValueError where there is a log-prior, or references of each query's own.
        """
        if log_prior is not None or own is not None:
            raise ValueError("a sharded bank takes no weighted references")
        processes, rank, batch = len(self.cuts) - 1, dist.get_rank(), len(x_t)
        group = torch.zeros(batch, dtype=torch.long, device=x_t.device) if group is None else group
        everyone = [_gathered(value, processes) for value in (x_t, t, group)]
        groups = everyone[2].tolist()
        mine = [i for i, value in enumerate(groups) if self._shares(value, rank)]
        x, times, labels = (value[_index(mine, x_t)] for value in everyone)
        if mine:
            sums = super().sums(x, times, schedule, labels, None, mirrored, block)
        else:  # no query asks for what this process holds
            dtype = torch.float32 if self.images.dtype == torch.uint8 else torch.float64
            sums = Stream.empty(0, x_t[0].numel(), dtype, x_t.device)
        ours = groups[rank * batch : (rank + 1) * batch]
        asked = [[i for i, value in enumerate(ours) if self._shares(value, r)] for r in range(processes)]
        merged = Stream.empty(batch, sums.total.shape[1], sums.total.dtype, x_t.device)
        for queries, part in zip(asked, _returned(sums, [i // batch for i in mine], asked), strict=True):
            merged.merge(_index(queries, x_t), part)
        return merged

    def _shares(self, group: int, rank: int) -> bool:
        """Whether a process has images of a group. Raises ValueError where no process has any."""
        if (
            not 0 <= group < len(self.global_offsets) - 1
            or self.global_offsets[group] == self.global_offsets[group + 1]
        ):
            raise ValueError(f"group {group} has no reference images")
        return (
            self.global_offsets[group] < self.cuts[rank + 1]
            and self.cuts[rank] < self.global_offsets[group + 1]
        )


def _gathered(value: Tensor, processes: int) -> Tensor:
    """Every process's rows of a value [b, ...] → [processes·b, ...]."""
    parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(processes)]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)


def _returned(sums: Stream, owners: list[int], asked: list[list[int]]) -> list[Stream]:
    """Send the sums [k] to the processes that own the queries (in order); receive those for our queries.

    owners: the process that each sum belongs to. asked: which of our queries each process answers.
    """
    expected = [len(queries) for queries in asked]
    sent = [owners.count(process) for process in range(len(asked))]
    columns = []
    for value in vars(sums).values():
        received = value.new_empty(sum(expected), *value.shape[1:])
        dist.all_to_all_single(received, value, expected, sent)
        columns.append(torch.split(received, expected))
    return [Stream(*parts) for parts in zip(*columns, strict=True)]


def _index(rows: list[int], like: Tensor) -> Tensor:
    return moved(torch.tensor(rows, dtype=torch.long), like.device)
