"""The streaming posterior mean against its peers: correctness first, then time and memory, in one run.

    python benchmarks/posterior_mean.py [--threads 1] [--part "50,000"]

At 50 000 uint8 references of 3×32×32 and 128 queries:
  streaming  consistune.core.posterior.mean, references as uint8
  floats     the same as on a processor that multiplies bytes no faster than floats
  logits     the references as one fp32 matrix and their squares, made beforehand; the full [B, n]
             logits, softmax, product
the same at 5 000 references, and for ten classes of 5 000.

Writes benchmarks/results/posterior_mean.json and the table in docs/methods.md. Peak memory is the process's
high-water mark above what it held before the call (Linux).
"""

import argparse
import ctypes
import json
import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from consistune.core.noise import EDM
from consistune.core.posterior import integers as whole
from consistune.core.posterior import streaming
from consistune.core.posterior.mean import Reference, dequantise, posterior, quantise
from consistune.core.times import LogNormal
from consistune.system.host import machine
from pages import fill

QUERIES, SHAPE, REPEATS = 128, (3, 32, 32), 3
RESULT = Path(__file__).parent / "results" / "posterior_mean.json"


@cache
def pictures(n: int) -> Tensor:
    """Smooth random images with some noise, uint8; every tenth a copy, two levels apart in a few pixels."""
    g = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(0, n, 5000):
        coarse = torch.randn(5000, 3, 8, 8, generator=g)
        smooth = torch.nn.functional.interpolate(coarse, size=SHAPE[1:], mode="bilinear")
        parts.append(quantise((0.6 * smooth + 0.05 * torch.randn(5000, *SHAPE, generator=g)).clamp(-1, 1)))
    images = torch.cat(parts)[:n]
    images[9::10] = images[8::10][: len(images[9::10])]
    images[9::10, :, 0, ::5] ^= 2
    return images


def logits_form(x_t: Tensor, t: Tensor, references: Tensor, squares: Tensor) -> Tensor:
    """softmax(−(‖x‖² − 2 x_t·x)/2t²) @ x with the whole [B, n] matrix."""
    q = x_t.flatten(1)
    logits = torch.addmm(squares, q, references.T, alpha=-2).div_((-2 * t.square())[:, None])
    return (torch.softmax(logits, dim=1) @ references).view_as(x_t)


def exact(x_t: Tensor, t: Tensor, images: Tensor) -> Tensor:
    """Every difference in float64, a block of references at a time, one query at a time."""
    out = []
    for q, s in zip(x_t.double(), t.double(), strict=True):
        squares = [(dequantise64(b) - q).flatten(1).square().sum(1) for b in images.split(2000)]
        weights = torch.softmax(torch.cat(squares) / (-2 * s * s), 0)
        blocks = zip(weights.split(2000), images.split(2000), strict=True)
        out.append(sum(torch.einsum("n,nchw->chw", w, dequantise64(b)) for w, b in blocks))
    return torch.stack(out)


def dequantise64(pixels: Tensor) -> Tensor:
    return pixels.double() / 127.5 - 1


def queries_at(images: Tensor, ratio: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """128 noisy images at one t, or at t from ECT's law (ratio None): x_t, t, the images' rows."""
    g = torch.Generator().manual_seed(7)
    rows = torch.randint(len(images), (QUERIES,), generator=g)
    t = LogNormal(low=0.002, high=80.0).sample(QUERIES, g) if ratio is None else torch.full((QUERIES,), ratio)
    x_t = EDM().diffuse(dequantise(images[rows]), torch.randn(QUERIES, *SHAPE, generator=g), t)
    return x_t, t, rows


def relative_error(found: Tensor, truth: Tensor) -> float:
    errors = (found.double() - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
    return float(errors.max())


def resident(field: str) -> float:
    """MB of this process: VmRSS now, VmHWM at most."""
    match = re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024 if match else float("nan")


def peak_memory(call: Callable[[], Tensor]) -> float:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed goes back, so that it counts again
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def measure(calls: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, dict[str, float]]:
    """CPU seconds a call, the candidates taking turns: median, least, most."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {
        name: {"median": statistics.median(s), "least": min(s), "most": max(s)} for name, s in seconds.items()
    }


def without_bytes(call: Callable[[], Tensor]) -> Tensor:
    """The call on a processor without fast byte products."""
    with ExitStack() as stack:
        for module in (streaming, whole):
            stack.enter_context(patch.object(module, "fast_bytes", lambda _: False))
        return call()


def row(n: int, classes: int, ratio: float | None, repeats: int) -> dict:
    """One row: n references in so many classes, at one t or over ECT's law (None)."""
    images = pictures(n)
    size = n // classes
    reference = Reference(images, tuple(range(0, n + 1, size)))
    matrix = dequantise(images).flatten(1)
    squares = matrix.square().sum(1)
    x_t, t, rows = queries_at(images, ratio)
    group = rows // size

    def plain() -> Tensor:
        mean = torch.empty_like(x_t)
        for c in range(classes):
            mine, part = group == c, slice(c * size, (c + 1) * size)
            mean[mine] = logits_form(x_t[mine], t[mine], matrix[part], squares[part])
        return mean

    calls = {"streaming": lambda: posterior(x_t, t, EDM(), reference, group).mean, "logits": plain}
    calls["floats"] = lambda: without_bytes(calls["streaming"])
    few = range(0, QUERIES, QUERIES // 2)
    truth = torch.cat(
        [exact(x_t[i : i + 1], t[i : i + 1], images[group[i] * size : (group[i] + 1) * size]) for i in few]
    )
    errors = {name: relative_error(call()[few], truth) for name, call in calls.items()}
    for name in ("streaming", "floats"):
        if errors[name] > 1e-5:
            raise SystemExit(f"{name} is wrong at t = {ratio}: relative error {errors[name]:.1e}")
    memory = {name: peak_memory(call) for name, call in calls.items()}
    seconds = measure(calls, repeats)
    found = {
        "references": n,
        "classes": classes,
        "t": ratio if ratio is not None else "lognormal(-1.1, 2)",
        "effective_size_median": float(posterior(x_t, t, EDM(), reference, group).effective_size.median()),
        "relative_error": errors,
        "peak_extra_MB": memory,
        "seconds": seconds,
        "times_logits": seconds["streaming"]["median"] / seconds["logits"]["median"],
    }
    brief = {name: f"{v['median']:.3f} s, {memory[name]:.0f} MB" for name, v in seconds.items()}
    print(n, classes, found["t"], brief, flush=True)
    return found


def markdown(rows: dict[str, list[dict]]) -> str:
    lines = [
        "| references | t | streaming, s | logits, s | streaming / logits | without byte products, s "
        "| streaming: extra MB | error, streaming / logits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for many, r in ((name, r) for name, found in rows.items() for r in found):
        seconds = {name: f"{value['median']:.3f}" for name, value in r["seconds"].items()}
        error = r["relative_error"]
        lines.append(
            f"| {many} | {r['t']} | {seconds['streaming']} | {seconds['logits']} | {r['times_logits']:.2f} "
            f"| {seconds['floats']} | {r['peak_extra_MB']['streaming']:.0f} "
            f"| {error['streaming']:.0e} / {error['logits']:.0e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=["5,000", "10 classes of 5,000", "50,000"], help="keep the others")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    law = None
    asked = {
        "5,000": (5_000, 1, [law, 0.01, 0.3, 1, 3, 10, 80]),
        "10 classes of 5,000": (50_000, 10, [law, 3, 80]),
        "50,000": (50_000, 1, [law, 0.01, 1, 10, 80]),
    }
    rows = json.loads(RESULT.read_text())["rows"] if options.part else {}
    for name in [options.part] if options.part else asked:
        n, classes, ratios = asked[name]
        rows[name] = [row(n, classes, ratio, REPEATS) for ratio in ratios]
    head = {
        "queries": QUERIES,
        "shape": list(SHAPE),
        "threads": options.threads,
        "repeats": REPEATS,
        "machine": machine(),
        "byte_products": torch.cpu._is_vnni_supported(),
    }
    RESULT.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    if rows.keys() == asked.keys():
        fill("methods.md", "posterior mean", markdown(rows))


if __name__ == "__main__":
    main()
