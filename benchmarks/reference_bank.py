"""Where the reference images live, and what an answer costs: the map itself, fetched ahead, shared by two.

    python benchmarks/reference_bank.py [--repeats 5] [--folder FOLDER]

128 queries at ECT's law of t over the classes of two sets of random smooth images, uint8 in a memory map:
50 000 of 3×32×32 in 10 classes (CIFAR-10's size), and 65 000 of 3×64×64 in 50 classes of 1 300 (a
twentieth of ImageNet-64). `device` on a CPU is the map itself; `host` copies block after block in a thread.
"cold" has the file's pages dropped from memory before each answer. Then two processes with 64 queries each,
with the whole set in both (replicated) or half in each (sharded): the slower one's seconds.

Answers are compared first. One thread a process, wall-clock seconds. Writes results/reference_bank.json and
the table in docs/methods.md.
"""

import argparse
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import spawn

from consistune.core.noise import EDM
from consistune.core.posterior.bank import make_bank
from consistune.core.posterior.mean import Reference, dequantise, quantise
from consistune.core.times import LogNormal
from pages import fill

RESULT = Path(__file__).parent / "results" / "reference_bank.json"
SETS = {"50,000 of 3×32×32, 10 classes": (32, 10, 5_000), "65,000 of 3×64×64, 50 classes": (64, 50, 1_300)}
QUERIES = 128


def write(path: Path, side: int, classes: int, per_class: int) -> None:
    """Smooth random images, a class at a time."""
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (classes * per_class, 3, side, side))
    g = torch.Generator().manual_seed(0)
    for c in range(classes):
        coarse = torch.randn(per_class, 3, 8, 8, generator=g)
        smooth = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
        out[c * per_class : (c + 1) * per_class] = quantise((0.6 * smooth).clamp(-1, 1)).numpy()
    out.flush()


def mapped(path: Path, classes: int) -> tuple[Reference, Callable[[], None]]:
    """The set over its file, and what drops its pages from memory."""
    array = np.load(path, mmap_mode="r+")
    images = torch.from_numpy(array)

    def drop() -> None:
        array._mmap.madvise(mmap.MADV_DONTNEED)
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)

    return Reference(images, tuple(range(0, len(images) + 1, len(images) // classes))), drop


def queries(reference: Reference) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(7)
    rows = torch.randint(len(reference), (QUERIES,), generator=g)
    t = LogNormal(low=0.002, high=80.0).sample(QUERIES, g)
    x_0 = dequantise(reference.images[rows])
    group = rows // (len(reference) // (len(reference.offsets) - 1))
    return EDM().diffuse(x_0, torch.randn(x_0.shape, generator=g), t), t, group


def timed(call: Callable[[], object], repeats: int, before: Callable[[], None] = lambda: None) -> list[float]:
    seconds = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def one_process(path: Path, classes: int, repeats: int) -> dict[str, dict]:
    images, drop = mapped(path, classes)
    x_t, t, group = queries(images)
    found: dict[str, dict] = {}
    answers = []
    for where in ("device", "host"):
        bank = make_bank(images, "cpu", where)  # type: ignore[arg-type]

        def call(bank: Reference = bank) -> Tensor:
            return bank.mean(x_t, t, EDM(), group)

        answers.append(call())  # and ‖x‖² is known from now on
        found[where] = {"seconds": timed(call, repeats), "cold": timed(call, repeats, drop)}
    if not torch.equal(*answers):
        raise SystemExit("the banks differ")
    return found


def _process(rank: int, folder: str, path: str, classes: int, repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    reference, _ = mapped(Path(path), classes)
    x_t, t, group = queries(reference)
    half = slice(rank * QUERIES // 2, (rank + 1) * QUERIES // 2)
    seconds, answers = {}, {}
    for where in ("device", "sharded"):
        bank = make_bank(reference, "cpu", where)  # type: ignore[arg-type]

        def call(bank: Reference = bank) -> Tensor:
            return bank.mean(x_t[half], t[half], EDM(), group[half])

        answers[where] = call()
        seconds[where] = timed(call, repeats, dist.barrier)
    if not torch.allclose(answers["device"], answers["sharded"], rtol=1e-5, atol=1e-6):
        raise SystemExit("the banks differ")
    Path(f"{folder}/{rank}.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def two_processes(path: Path, classes: int, repeats: int) -> dict[str, dict]:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_process, (folder, str(path), classes, repeats), nprocs=2)
        parts = [json.loads(Path(f"{folder}/{rank}.json").read_text()) for rank in range(2)]
    slower = {name: [max(pair) for pair in zip(*(p[name] for p in parts), strict=True)] for name in parts[0]}
    names = {"device": "two processes, replicated", "sharded": "two processes, sharded"}
    return {names[name]: {"seconds": seconds} for name, seconds in slower.items()}


def markdown(result: dict) -> str:
    lines = ["| set | bank | s | s, cold |", "|---|---|---|---|"]
    for name, banks in result["sets"].items():
        for bank, found in banks.items():
            cells = [median(found[key]) if key in found else "—" for key in ("seconds", "cold")]
            lines.append(f"| {name} | {bank} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def median(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} … {max(seconds):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    options = parser.parse_args()
    torch.set_num_threads(1)
    sets = {}
    for name, (side, classes, per_class) in SETS.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = Path(folder) / "images.npy"
            write(path, side, classes, per_class)
            sets[name] = one_process(path, classes, options.repeats)
            sets[name] |= two_processes(path, classes, options.repeats)
        print(name, json.dumps(sets[name]), flush=True)
    result = {"queries": QUERIES, "repeats": options.repeats, "torch": torch.__version__, "sets": sets}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    fill("methods.md", "reference bank", markdown(result))


if __name__ == "__main__":
    main()
