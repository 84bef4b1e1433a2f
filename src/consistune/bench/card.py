"""What needs a CUDA device: the compiled step, its share of the matrix rate, CUDA graphs."""

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch

from consistune.bench import sampling, training
from consistune.bench.timing import Timing, alternate, times_as_fast
from consistune.bench.training import products_in
from consistune.bench.workload import Workload
from consistune.training.precision import HALF, Word

BATCH = 128
WARMUP = 11
"""Turns before the clock starts, for compilation and for the choice among kernels."""
SIDE = 8192
Rows = Iterator[tuple[str, str, str]]
"""What is measured, its value, and what it is compared with."""


def product(
    word: Word = "bf16", device: str = "cuda", side: int = SIDE, rounds: int = 5, inner: int = 20
) -> Timing:
    """Seconds of a product of two side × side matrices of random numbers, in a precision of training."""
    dtype = HALF.get(word, torch.float32)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    with products_in(word):
        return alternate({"product": lambda: a @ b}, rounds, warmup=2, inner=inner)["product"]


def matrix_rate() -> float:
    """Floating-point operations per second of a bf16 product of two SIDE × SIDE matrices on a CUDA device."""
    return 2 * SIDE**3 / product().median


def step_flops(workload: Workload) -> int:
    """Operations of a consistency step: two forward passes, and a backward pass that counts as two."""
    model = workload.model().eval()
    return 4 * workload.batch * sampling.flops(model, torch.randn(1, *model.image_shape), torch.ones(1))


def training_step(workload: Workload, rounds: int) -> Rows:
    """Eager and compiled bf16 steps against the plain loop, and the share of the device's matrix rate."""
    runs = {
        "plain": training.plain_step(workload, "cuda"),
        "bf16": training.our_step(workload, "bf16", device="cuda"),
        "bf16, compiled": training.our_step(workload, "bf16", device="cuda", compile=True),
    }
    times = alternate(runs, rounds, warmup=WARMUP)
    rate, operations = matrix_rate(), step_flops(workload)
    yield "matrix product, bf16", f"{rate / 1e12:.0f} TFLOP/s", ""
    for name, timing in times.items():
        share = operations / timing.median / rate
        value = f"{workload.batch / timing.median:.0f} images/s, {share:.1%} of the rate"
        yield f"training step: {name}, batch {workload.batch}", value, times_as_fast(times, name, "plain")


def one_image(workload: Workload, rounds: int) -> Rows:
    """The latency of the network's pass on one image: eager, compiled, and as a CUDA graph."""
    model = workload.model().eval().requires_grad_(False).cuda()
    model.precision = "bf16"
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, sigma = 80 * torch.randn(1, *model.image_shape, device="cuda"), torch.full((1,), 80.0, device="cuda")
    fused, graph = copy.deepcopy(model), copy.deepcopy(model)
    fused.network.compile(dynamic=False)
    torch.cuda.make_graphed_callables(graph, (x, sigma))  # replaces its forward
    with torch.no_grad():
        forms = {"eager": model, "compiled": fused, "CUDA graph": graph}
        runs = {name: partial(form, x, sigma) for name, form in forms.items()}
        times = alternate(runs, rounds, warmup=WARMUP, inner=20)
    for name, timing in times.items():
        yield f"one image: {name}", f"{timing.median * 1000:.2f} ms", times_as_fast(times, name, "eager")


ITEMS: dict[str, Callable[[Workload, int], Rows]] = {
    "training step: bf16, compiled, share of the matrix rate": training_step,
    "one image: compiled, CUDA graph": one_image,
}
