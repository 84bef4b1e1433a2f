"""The posterior mean over references: against other forms of it, and with the references in other places.

    python benchmarks/posterior.py [mean] [bank] [--only PART …]

mean: 128 queries over uint8 references of 3×32×32; CPU seconds and peak memory of
  streaming  consistune.core.posterior.mean
  floats     the same without the processor's fast products of bytes
  logits     the references as one fp32 matrix with their squares; the full [B, n] logits, softmax, product
bank: sets of CIFAR-10's size and of a twentieth of ImageNet-64. `device` on a CPU is the memory map itself;
  `host` copies blocks in a thread. Before a "cold" answer the file's pages are dropped from memory. Then two
  processes with 64 queries each, with the whole set in both (replicated) or half in each (sharded).

Both sections compare the answers before they measure.
"""

import ctypes
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from consistune.bench import workload
from consistune.bench.timing import alternate
from consistune.core.laws import LogNormal
from consistune.core.noise import EDM
from consistune.core.posterior import integers, streaming
from consistune.core.posterior.bank import make_bank
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.system.host import machine, peak_bytes
from harness import Benchmark, Record, in_pair, shown, spread
from tables import markdown

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--folder", default=tempfile.gettempdir(), help="of the bank's memory maps")
QUERIES = 128
Calls = dict[str, Callable[[], object]]


def cpu_seconds(calls: Calls, rounds: int, warmup: int = 1) -> dict[str, dict[str, float]]:
    times = alternate(calls, rounds, warmup, clock=time.process_time)
    return {name: spread(timing.seconds) for name, timing in times.items()}


@cache
def pictures(n: int) -> Tensor:
    """Smooth random images, uint8 [n, 3, 32, 32]; every tenth is a copy with a few pixels changed by 2."""
    images = torch.cat([workload.pictures(5000, (3, 32, 32), k) for k in range(-(-n // 5000))])[:n]
    images[9::10] = images[8::10][: len(images[9::10])]
    images[9::10, :, 0, ::5] ^= 2
    return images


def classes_of(images: Tensor, classes: int) -> Reference:
    """References in equal classes."""
    return Reference(images, tuple(range(0, len(images) + 1, len(images) // classes)))


def queries(images: Tensor, count: int, t: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images at one t, or at times from ECT's distribution: x_t, t, and the images' rows."""
    g = torch.Generator().manual_seed(7)
    rows = torch.randint(len(images), (count,), generator=g)
    times = LogNormal(low=0.002, high=80.0).sample(count, g) if t is None else torch.full((count,), t)
    x_0 = dequantise(images[rows])
    return EDM().diffuse(x_0, torch.randn(x_0.shape, generator=g), times), times, rows


def exact(x_t: Tensor, t: Tensor, images: Tensor) -> Tensor:
    """The posterior mean in float64, one query and one block of references at a time."""
    means = []
    for q, s in zip(x_t.double(), t.double(), strict=True):
        blocks = [block.double() / 127.5 - 1 for block in images.split(2000)]
        squares = torch.cat([(block - q).flatten(1).square().sum(1) for block in blocks])
        weights = torch.softmax(squares / (-2 * s * s), 0).split(2000)
        means.append(sum(torch.einsum("n,nchw->chw", w, b) for w, b in zip(weights, blocks, strict=True)))
    return torch.stack(means)


def relative_error(mean: Tensor, truth: Tensor) -> float:
    """The largest ‖mean − truth‖/‖truth‖ among the queries."""
    return float(((mean.double() - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).max())


def peak_mib(call: Callable[[], object]) -> float:
    """Peak memory of the call above what the process held before it (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # returns memory that earlier calls freed, so that it counts again
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the memory now held
    before = peak_bytes()
    call()
    return (peak_bytes() - before) / 2**20


def refuse_wrong(errors: dict[str, float], *names: str) -> None:
    for name in names:
        if errors[name] > 1e-5:
            raise SystemExit(f"{name} is wrong: relative error {errors[name]:.1e}")


# --- mean

MEAN = {
    "5,000": (5_000, 1, [None, 0.01, 0.3, 1, 3, 10, 80]),
    "10 classes of 5,000": (50_000, 10, [None, 3, 80]),
    "50,000": (50_000, 1, [None, 0.01, 1, 10, 80]),
}
"""References, classes, and the times t (None: ECT's distribution)."""


def mean_table(record: Record) -> str:
    rows = []
    for many, r in ((name, r) for name, each in record["rows"].items() for r in each):
        seconds = {name: f"{value['median']:.3f}" for name, value in r["seconds"].items()}
        memory, error = r["peak_extra_MB"]["streaming"], r["relative_error"]
        errors = f"{error['streaming']:.0e} / {error['logits']:.0e}"
        rows.append([many, r["t"], seconds["streaming"], seconds["logits"], f"{r['times_logits']:.2f}"])
        rows[-1] += [seconds["floats"], f"{memory:.0f}", errors]
    header = ["references", "t", "streaming, s", "logits, s", "streaming / logits"]
    more = ["without byte products, s", "streaming: extra MB", "error, streaming / logits"]
    return markdown([*header, *more], rows)


@benchmark.section(
    "posterior_mean.json", MEAN, tables={("results/posterior-cost.md", "posterior mean"): mean_table}
)
def mean(given, part: str) -> Record:
    n, classes, times = MEAN[part]
    if given.quick:
        n, times = n // 50, times[:2]
    rows = [mean_row(n, classes, t, given.rounds) for t in times]
    about = {"queries": QUERIES, "shape": [3, 32, 32], "threads": torch.get_num_threads()}
    about |= {"repeats": given.rounds, "byte_products": integers.fast_bytes(torch.device("cpu"))}
    return {**about, "machine": machine(), "rows": {part: rows}}


def logits_form(x_t: Tensor, t: Tensor, references: Tensor, squares: Tensor) -> Tensor:
    """softmax(−(‖x‖² − 2 x_t·x)/2t²) @ x with the whole [B, n] matrix."""
    logits = torch.addmm(squares, x_t.flatten(1), references.T, alpha=-2).div_((-2 * t.square())[:, None])
    return (torch.softmax(logits, dim=1) @ references).view_as(x_t)


def mean_row(n: int, classes: int, at: float | None, rounds: int) -> Record:
    images, size = pictures(n), n // classes
    reference, matrix = classes_of(images, classes), dequantise(images).flatten(1)
    squares = matrix.square().sum(1)
    x_t, t, rows = queries(images, QUERIES, at)
    group = rows // size

    def logits() -> Tensor:
        means = torch.empty_like(x_t)
        for c in group.unique().tolist():
            mine, part = group == c, slice(c * size, (c + 1) * size)
            means[mine] = logits_form(x_t[mine], t[mine], matrix[part], squares[part])
        return means

    def floats() -> Tensor:
        with ExitStack() as stack:
            for module in (streaming, integers):
                stack.enter_context(patch.object(module, "fast_bytes", lambda _: False))
            return calls["streaming"]()

    calls: dict[str, Callable[[], Tensor]] = {
        "streaming": lambda: posterior(x_t, t, EDM(), reference, group).mean,
        "logits": logits,
        "floats": floats,
    }
    few = range(0, QUERIES, QUERIES // 2)
    parts = {i: images[group[i] * size : (group[i] + 1) * size] for i in few}
    truth = torch.cat([exact(x_t[i : i + 1], t[i : i + 1], part) for i, part in parts.items()])
    errors = {name: relative_error(call()[few], truth) for name, call in calls.items()}
    refuse_wrong(errors, "streaming", "floats")
    memory = {name: peak_mib(call) for name, call in calls.items()}
    seconds = cpu_seconds(calls, rounds, warmup=0)
    return {
        "references": n,
        "classes": classes,
        "t": "lognormal(-1.1, 2)" if at is None else at,
        "effective_size_median": float(posterior(x_t, t, EDM(), reference, group).effective_size.median()),
        "relative_error": errors,
        "peak_extra_MB": memory,
        "seconds": seconds,
        "times_logits": seconds["streaming"]["median"] / seconds["logits"]["median"],
    }


# --- bank

BANK = {"50,000 of 3×32×32, 10 classes": (32, 10, 5_000), "65,000 of 3×64×64, 50 classes": (64, 50, 1_300)}
"""Side, classes, images per class."""


def mapped(path: Path, classes: int) -> tuple[Reference, Callable[[], None]]:
    """The set over its file, and a call that drops the file's pages from memory."""
    array = np.load(path, mmap_mode="r+")

    def drop() -> None:
        array._mmap.madvise(mmap.MADV_DONTNEED)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return classes_of(torch.from_numpy(array), classes), drop


def answers(reference: Reference, kinds: tuple[str, ...], rows: slice) -> dict[str, Callable[[], Tensor]]:
    """For each kind of bank a call for the posterior means of these queries. They agree, or it exits."""
    images, size = reference.images, reference.offsets[1]
    x_t, t, drawn = queries(images, QUERIES)
    banks = {kind: make_bank(reference, "cpu", kind) for kind in kinds}
    calls = {
        kind: lambda bank=bank: posterior(x_t[rows], t[rows], EDM(), bank, drawn[rows] // size).mean
        for kind, bank in banks.items()
    }
    first, *others = (call() for call in calls.values())  # also computes every ‖x‖², which the banks keep
    if not all(torch.allclose(first, other, rtol=1e-5, atol=1e-6) for other in others):
        raise SystemExit("the banks differ")
    return calls


def of_pair(rank: int, path: str, classes: int, rounds: int) -> dict[str, tuple[float, ...]]:
    half = slice(rank * QUERIES // 2, (rank + 1) * QUERIES // 2)
    calls = answers(mapped(Path(path), classes)[0], ("device", "sharded"), half)
    return {name: timing.seconds for name, timing in alternate(calls, rounds, 0, before=dist.barrier).items()}


def bank_table(record: Record) -> str:
    rows = [
        [name, bank, *(shown(seconds[key]) if key in seconds else "—" for key in ("seconds", "cold"))]
        for name, banks in record["sets"].items()
        for bank, seconds in banks.items()
    ]
    return markdown(["set", "bank", "s", "s, cold"], rows)


@benchmark.section(
    "reference_bank.json", BANK, 5, tables={("results/posterior-cost.md", "reference bank"): bank_table}
)
def bank(given, part: str) -> Record:
    side, classes, per_class = BANK[part]
    per_class = per_class // 50 if given.quick else per_class
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "images.npy"
        out = np.lib.format.open_memmap(path, "w+", np.uint8, (classes * per_class, 3, side, side))
        for c in range(classes):
            images = workload.pictures(per_class, (3, side, side), seed=c)
            out[c * per_class : (c + 1) * per_class] = images.numpy()
        out.flush()
        reference, drop = mapped(path, classes)
        calls = answers(reference, ("device", "host"), slice(None))
        warm, cold = alternate(calls, given.rounds, 0), alternate(calls, given.rounds, 0, before=drop)
        banks = {name: {"seconds": warm[name].seconds, "cold": cold[name].seconds} for name in calls}
        pair = in_pair(of_pair, str(path), classes, given.rounds)
    for name, title in {"device": "two processes, replicated", "sharded": "two processes, sharded"}.items():
        slower = [max(both) for both in zip(*(each[name] for each in pair), strict=True)]
        banks[title] = {"seconds": slower}
    return {"queries": QUERIES, "repeats": given.rounds, "torch": torch.__version__, "sets": {part: banks}}


if __name__ == "__main__":
    benchmark.main()
