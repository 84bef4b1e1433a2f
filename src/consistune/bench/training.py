"""A training step of ours against the plain loop's: one function first, then times and memory."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from consistune.bench.plain import PlainLoop, losses
from consistune.bench.timing import Timing, alternate, in_own_process
from consistune.bench.workload import StepInputs, Workload, objective, pictures
from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.objectives import Objective
from consistune.core.types import Batch
from consistune.data.images import ImageSet
from consistune.nn.precond import Preconditioned
from consistune.system.host import peak_bytes
from consistune.system.processes import Processes
from consistune.training.loop import Trainer
from consistune.training.optim import Optimizer
from consistune.training.options import TrainOptions
from consistune.training.precision import HALF, Word

TOLERANCE: dict[Word, tuple[float, float]] = {"fp32": (1e-5, 1e-4), "bf16": (0.02, 0.05)}
"""The largest relative error of losses and of gradients against the plain step, by precision."""
NEVER_DONE = 1 << 40
MEMORY_STEPS = 2
"""The optimizer's state exists from the second step on."""
PLAIN = "plain"
PLAIN_INPUTS = 4
"""The plain loop goes through so many batches in turn."""
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp32, checkpointing": {"precision": "fp32", "checkpointing": True},
    "bf16, checkpointing": {"precision": "bf16", "checkpointing": True},
}
"""Options of `trainer_of` whose peak memory is compared with the plain loop's."""


@dataclass(frozen=True)
class Errors:
    """‖ours − plain‖/‖plain‖ of the losses and of all gradients together."""

    loss: float
    gradient: float


def compare(model: Preconditioned, inputs: StepInputs) -> Errors:
    """Both steps' losses and gradients on the same inputs, in the model's own precision and memory format."""
    model.train().zero_grad()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    batch = Batch(inputs.x_0, inputs.labels, torch.arange(len(inputs.x_0)))
    ours = objective().at(model, model, batch, inputs.times, inputs.noise)
    ours.mean().backward()  # type: ignore[no-untyped-call]
    gradient = _gradient(model)
    model.zero_grad()
    model.load_state_dict(weights)  # a forward pass of EDM2 in training normalises them in place
    plain = losses(model, inputs.x_0, inputs.times, inputs.noise, inputs.labels)
    plain.mean().backward()  # type: ignore[no-untyped-call]
    plain_gradient = _gradient(model)
    model.zero_grad()
    return Errors(_relative(ours.detach(), plain.detach()), _relative(gradient, plain_gradient))


def _gradient(model: Preconditioned) -> Tensor:
    """All gradients as one vector, float64."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def checked(workload: Workload, precision: Word) -> Errors:
    """`compare` at two images without dropout. Raises RuntimeError where an error exceeds TOLERANCE."""
    model = replace(workload, batch=2, dropout=0.0).model()
    model.precision = "bf16" if precision == "bf16" else "fp32"
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    errors = compare(model, StepInputs.of(model, 2))
    loss, gradient = TOLERANCE[precision]
    if not (errors.loss < loss and errors.gradient < gradient):
        raise RuntimeError(f"{workload.preset}, {precision}: not the plain step's function, {errors}")
    return errors


def against_plain(
    workload: Workload, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[Word, Errors], dict[str, Timing]]:
    """The errors in each precision, and the times of each precision and of the plain loop ("plain")."""
    errors = {word: checked(workload, word) for word in TOLERANCE}
    runs: dict[str, Callable[[], object]] = {word: our_step(workload, word) for word in TOLERANCE}
    return errors, alternate(runs | {"plain": plain_step(workload)}, rounds, clock=clock)


def trainer_of(
    workload: Workload,
    precision: Word = "bf16",
    channels_last: bool = True,
    estimator: NoiseEstimator = OneSample(),
    data: ImageSet | None = None,
    device: str = "cpu",
    processes: Processes | None = None,
    of: Objective | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer of the workload's network that never ends; without `data` it trains on random pictures.

    of: another objective than consistency by `estimator`.
    """
    model = workload.model()
    if data is None:
        images, classes = pictures(4 * workload.batch, model.image_shape), max(model.num_classes, 1)
        data = ImageSet.of(
            "pictures", images, torch.arange(len(images)) % classes, tuple(map(str, range(classes)))
        )
    settings = TrainOptions(
        images=NEVER_DONE, batch=workload.batch, precision=precision, channels_last=channels_last, **options
    )
    return Trainer(
        model, of or objective(estimator), data, Optimizer(), settings, device, processes=processes
    )


def our_step(workload: Workload, precision: Word = "bf16", **options: Any) -> Callable[[], object]:
    """A call that takes the next whole step of `trainer_of`, from the images to the averages."""
    steps = trainer_of(workload, precision, **options).steps()
    return lambda: next(steps)


def plain_step(workload: Workload, device: str = "cpu", precision: Word = "fp32") -> Callable[[], object]:
    """A call that takes the plain loop's next step; its inputs are made here and lie on the device.

    precision: fp32 (no TF32), tf32, or bf16 under autocast.
    """
    loop = PlainLoop(workload.model().to(device))
    inputs = itertools.cycle(
        [StepInputs.of(loop.model, workload.batch, seed).to(device) for seed in range(PLAIN_INPUTS)]
    )

    def step() -> float:
        with products_in(precision), torch.autocast(device, HALF.get(precision), enabled=precision in HALF):
            return loop.step(next(inputs))

    return step


@contextmanager
def products_in(word: Word) -> Iterator[None]:
    """Products of fp32 numbers on a CUDA device: in TF32 for the word tf32, else in full precision.

    cuDNN searches for its fastest kernels, as it does for our own steps.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    matmul.allow_tf32 = cudnn.allow_tf32 = word == "tf32"
    cudnn.benchmark = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


def peaks(
    workload: Workload, forms: Iterable[str] = ("fp32", "bf16"), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Peak bytes of the plain loop and of ours in these FORMS, above what the process held before."""
    peaks = {
        form: in_own_process(extra_bytes, workload, form, environment=environment) for form in (PLAIN, *forms)
    }
    ratios = {form: round(peaks[form] / peaks[PLAIN], 4) for form in forms}
    return {"batch": workload.batch, "bytes": peaks, "share of the plain loop's": ratios}


def extra_bytes(workload: Workload, form: str) -> int:
    """This process's peak after MEMORY_STEPS steps on one thread, minus its peak before."""
    torch.set_num_threads(1)
    before = peak_bytes()
    step = plain_step(workload) if form == PLAIN else our_step(workload, **FORMS[form])
    for _ in range(MEMORY_STEPS):
        step()
    return peak_bytes() - before
