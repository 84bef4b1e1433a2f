"""What every objective is: the random draws of a step, then one loss for each sample, [B], fp32.

x_t = α_t·x_0 + σ_t·ε and t ≥ r ≥ s as in METHOD §0 and §4. Losses are never reduced here: the training loop
reduces them once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Generator, Tensor

from consistune.core.estimators import NoiseEstimator, OneSample
from consistune.core.noise import NoiseSchedule
from consistune.core.types import Batch, Denoiser, Progress, Times

Learns: TypeAlias = Literal["denoiser", "flow-map", "jumps"]
"""denoiser: x̂_0 is the posterior mean E[x_0 | x_t], which an ODE solver samples. flow-map: x̂_0 is the end of
the trajectory through x_t, or of its phase, which one step or a few samples. jumps: x̂_0 of a two-time
model leads to every s ≤ t, and is the posterior mean at s = t."""


@dataclass(frozen=True)
class Draws:
    """All that is random in a training step, for the whole batch or for some rows of it.

    Every process draws for the whole batch and then computes its own rows, so that neither the number of
    processes nor the size of their micro-batches changes what a step computes.

    Attributes:
        batch, times, noise: the images [B, C, H, W], t, r, s [B] and ε [B, C, H, W].
        estimator: bound to this step; a denoising objective does not use it.
        bootstraps: whether any transition of the whole batch ends above its phase's edge, r > s.
        share: a further factor of each sample's loss [B], for an objective that averages parts of the batch
            apart; None: 1.
        first: the row of the whole batch at which these rows begin.
    """

    batch: Batch
    times: Times
    noise: Tensor
    estimator: NoiseEstimator = OneSample()
    bootstraps: bool = False
    share: Tensor | None = None
    first: int = 0

    def rows(self, part: slice) -> "Draws":
        """These rows of the batch."""
        return Draws(
            self.batch.rows(part),
            self.times.rows(part),
            self.noise[part],
            self.estimator.rows(part),
            self.bootstraps,
            None if self.share is None else self.share[part],
            self.first + (part.start or 0),
        )


class Objective(Protocol):
    """Per-sample loss [B] of a model on a batch at a point of training: first the draws, then the losses.

    Attributes:
        schedule: the noise schedule under which the models passed to `losses` are denoisers.
        learns: what a trained model's x̂_0 is.
        needs_two_times: whether the model must be a two-time network.
        uses_target: whether `losses` asks the target network for anything.
        differentiates: whether `losses` takes a forward derivative through the model.
        needs_unlabelled: whether `losses` asks the model without labels, which label dropout trains.
        edges: the inner edges of a phased model in the schedule's time; () for a plain one.
    """

    schedule: NoiseSchedule
    learns: ClassVar[Learns] = "flow-map"
    needs_two_times: ClassVar[bool] = False
    uses_target: ClassVar[bool] = True
    differentiates: ClassVar[bool] = False

    @property
    def edges(self) -> tuple[float, ...]:
        return ()

    @property
    def needs_unlabelled(self) -> bool:
        return False

    @property
    def lowest_time(self) -> float:
        """No noise-to-signal ratio below this is learned."""
        return 0.0

    def reference_bytes(self) -> int:
        """The size of the reference images that a step reads beside its batch."""
        return 0

    def __init_subclass__(cls, **options: object) -> None:
        """Every objective's losses are checked: those of another shape would train something else."""
        super().__init_subclass__(**options)
        if "losses" in cls.__dict__:
            cls.losses = _checked(cls.losses)  # type: ignore[method-assign, assignment]

    def draw(self, batch: Batch, progress: Progress, generator: Generator) -> Draws: ...

    def losses(self, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor: ...

    def __call__(
        self, model: Denoiser, target: Denoiser, batch: Batch, progress: Progress, generator: Generator
    ) -> Tensor:
        return self.losses(model, target, self.draw(batch, progress, generator))


Losses: TypeAlias = Callable[[Any, Denoiser, Denoiser, Draws], Tensor]
"""`Objective.losses` with the objective as its first argument."""


def _checked(losses: Losses) -> Losses:
    """The losses, with ValueError where they are not [B]."""

    @wraps(losses)
    def checked(self: Objective, model: Denoiser, target: Denoiser, draws: Draws) -> Tensor:
        return check_shape(losses(self, model, target, draws), (len(draws.batch),), self, "losses")

    return checked


def check_images(x0_hat: Tensor, x_t: Tensor, estimator: NoiseEstimator) -> Tensor:
    """The estimate, with ValueError where it is not of the shape of x_t."""
    return check_shape(x0_hat, x_t.shape, estimator, "images")


def check_shape(value: Tensor, shape: Sequence[int], part: object, what: str) -> Tensor:
    """The value that a part gives. Raises ValueError for another shape, which would be broadcast."""
    given = getattr(value, "shape", None)
    if given != tuple(shape):
        seen = type(value).__name__ if given is None else list(given)
        name = getattr(part, "__name__", type(part).__name__)
        raise ValueError(f"{name} gives {what} {seen}, expected {list(shape)}")
    return value


def check_schedule(schedule: NoiseSchedule, *parts: object) -> None:
    """Raises ValueError where a part of an objective, or a blend's estimator, has another noise schedule."""
    for part in parts:
        other = getattr(part, "schedule", None)
        if other is not None and other != schedule:
            raise ValueError(
                f"{type(part).__name__} has the schedule {type(other).__name__}, the objective "
                f"{type(schedule).__name__}: give both the same"
            )
        if (inner := getattr(part, "estimator", None)) is not None:
            check_schedule(schedule, inner)


def check_draws(batch: Batch, times: Times, noise: Tensor, apart: bool = False) -> bool:
    """Whether r > s for any sample. One device sync.

    Raises ValueError unless t > 0, t ≥ r ≥ s ≥ 0 (with `apart` t > r), and images and noise are finite.
    """
    t, r, s = times.t, times.r, times.s
    ordered = ((t > r if apart else t >= r) & (t > 0) & (r >= s) & (s >= 0) & torch.isfinite(t)).all()
    finite = torch.isfinite(batch.x_0).all() & torch.isfinite(noise).all()
    images_are_finite, in_order, some = torch.stack([finite, ordered, (r > s).any()]).tolist()
    if not in_order:
        raise ValueError(
            "a transition needs finite times t > r >= s >= 0"
            if apart
            else "a flow map needs finite times t > 0 and t >= r >= 0"
        )
    if not images_are_finite:
        raise ValueError("the noisy images contain NaN or infinity: look at the data and the noise")
    return bool(some)


def gaussian_like(x: Tensor, generator: Generator) -> Tensor:
    """ε ~ N(0, I) in the shape and on the device of x, at least fp32, drawn on the generator's device."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device)
    return noise.to(x.device, torch.promote_types(x.dtype, torch.float32))
