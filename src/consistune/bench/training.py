"""A training step of ours against the plain loop's: the same function first, then images a second."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from consistune.bench.plain import PlainLoop, losses
from consistune.bench.timing import Timing
from consistune.bench.workload import Draw, Workload, objective, pictures
from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.types import Batch
from consistune.data.images import ImageSet
from consistune.nn.precond import Preconditioned
from consistune.system.processes import Processes
from consistune.train.loop import Trainer
from consistune.train.optim import Optimizer
from consistune.train.options import TrainOptions
from consistune.train.precision import Word

ROOM = {"fp32": (1e-5, 1e-4), "bf16": (0.02, 0.05)}
"""By precision: how far loss and gradient may lie from the plain step's, relative to their length."""
FOREVER = 1 << 40


@dataclass(frozen=True)
class Errors:
    """Distance of our losses and gradients from the plain step's, over the latter's length."""

    loss: float
    gradient: float


def compare(model: Preconditioned, draw: Draw) -> Errors:
    """Both steps' losses and gradients on one draw, by the parts as they stand (precision, memory format)."""
    model.train().zero_grad()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    batch = Batch(draw.x_0, draw.labels, torch.arange(len(draw.x_0)))
    ours = objective().at(model, model, batch, draw.times, draw.noise)
    ours.mean().backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.load_state_dict(weights)  # EDM2's pass rewrites them
    plain = losses(model, draw.x_0, draw.times, draw.noise, draw.labels)
    plain.mean().backward()  # type: ignore[no-untyped-call]
    pairs = [
        (a, p.grad)
        for a, p in zip(gradients, model.parameters(), strict=True)
        if a is not None and p.grad is not None
    ]
    error = sum(float((a - b).double().square().sum()) for a, b in pairs) ** 0.5
    length = sum(float(b.double().square().sum()) for _, b in pairs) ** 0.5
    model.zero_grad()
    off = torch.linalg.vector_norm(ours.detach() - plain.detach()) / torch.linalg.vector_norm(plain.detach())
    return Errors(float(off), error / length)


def checked(workload: Workload, precision: Word) -> Errors:
    """`compare` at two images without dropout. Raises RuntimeError where the two steps differ beyond ROOM."""
    model = workload.without_dropout(2).model()
    model.precision = "bf16" if precision == "bf16" else "fp32"
    errors = compare(model.to(memory_format=torch.channels_last), Draw.of(model, 2))  # type: ignore[call-overload]
    loss, gradient = ROOM[precision]
    if not (errors.loss < loss and errors.gradient < gradient):
        raise RuntimeError(f"{workload.preset}, {precision}: not the plain step's function, {errors}")
    return errors


def trainer_of(
    workload: Workload,
    precision: Word = "bf16",
    channels_last: bool = True,
    estimator: NoiseEstimator = OneSample(),
    data: ImageSet | None = None,
    device: str = "cpu",
    processes: Processes | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer of the workload's network, over random pictures where no data are given."""
    model = workload.model()
    if data is None:
        images = pictures(4 * workload.batch, model.image_shape)
        labels = torch.arange(len(images)) % max(model.num_classes, 1)
        names = tuple(str(i) for i in range(max(model.num_classes, 1)))
        data = ImageSet.of("pictures", images, labels, names)
    settings = TrainOptions(
        images=FOREVER, batch=workload.batch, precision=precision, channels_last=channels_last, **options
    )
    return Trainer(model, objective(estimator), data, Optimizer(), settings, device, processes=processes)


def our_step(workload: Workload, precision: Word = "bf16", **options: Any) -> Callable[[], object]:
    """A call that takes the next step of `trainer_of`: the whole of it, from the images to the average."""
    steps = trainer_of(workload, precision, **options).steps()
    return lambda: next(steps)


def plain_step(workload: Workload, device: str = "cpu") -> Callable[[], object]:
    """A call that takes the plain loop's next step."""
    loop = PlainLoop(workload.model().to(device))
    seeds = itertools.count()

    def step() -> float:
        draw = Draw.of(loop.model, workload.batch, next(seeds)).to(device)
        return loop.step(draw.x_0, draw.times, draw.noise, draw.labels)

    return step


def speed(timing: Timing, batch: int) -> dict[str, Any]:
    """Seconds and images a second, for JSON."""
    return {**timing.record(), "images a second": round(batch / timing.median, 3)}
