"""The training loop: a generator that takes one optimizer step and then reports it.

Everything random in a step is drawn from seeds that name the step (`rng.mix_seed`), and everything
scheduled is a function of the images seen; so the state is the weights, the optimizer, the averages and
two counters, and a run continued from it repeats the unbroken run bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from sct.core.objectives import Objective
from sct.core.rng import mix_seed
from sct.core.types import Batch, Denoiser
from sct.nn.precond import Preconditioned
from sct.train.ema import EMA, Average, Online, PowerFunction, SnapshotPrecision, Target, as_average
from sct.train.optim import Optimizer


class Stream(IntEnum):
    """The independent sources of randomness of a run."""

    ORDER = 1
    NOISE = 2
    DROPOUT = 3


@dataclass(frozen=True)
class StepReport:
    """What one step did. `finite` is False where the step was skipped for a non-finite loss or gradient."""

    step: int
    images: int
    loss: float
    learning_rate: float
    gradient_norm: float
    finite: bool
    nonfinite_total: int


@dataclass(frozen=True)
class TrainOptions:
    """How long, how many at a time, and what is kept.

    Attributes:
        images: training images to see in all.
        batch: images a step.
        ema: averages, as a decay per step or an `Average`; the first is the model that is sampled and stored.
        seed: everything random follows from it.
        x_flip: mirror every other image at random; references are then mirrored too.
        label_dropout: share of the images whose label the model does not see, which trains its unlabelled
            branch (classifier-free guidance, 2207.12598); references keep to the label all the same.
        checkpoint_images, log_images: how often, in images.
        snapshots: shares of training at which the averaged model is kept, for guidance by an earlier self.
        ema_snapshot_images: how often, in images, the power-function averages are kept, and again at the end,
            for averages of other lengths (`posthoc`); None: never.
        ema_snapshot_precision: what those are stored in.
        max_nonfinite: so many non-finite steps in a row end the run.
    """

    images: int
    batch: int = 128
    ema: tuple[float | Average, ...] = (0.9999,)
    seed: int = 0
    x_flip: bool = False
    label_dropout: float = 0.0
    checkpoint_images: int = 100_000
    log_images: int = 6_400
    snapshots: tuple[float, ...] = (0.25, 0.5, 0.75)
    ema_snapshot_images: int | None = None
    ema_snapshot_precision: SnapshotPrecision = "fp32"
    max_nonfinite: int = 20

    def __post_init__(self) -> None:
        for name in ("images", "batch", "checkpoint_images", "log_images", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.ema:
            raise ValueError("ema must list at least one average")
        for average in self.ema:
            as_average(average)
        if self.ema_snapshot_images is not None:
            if self.ema_snapshot_images < 1:
                raise ValueError(f"ema_snapshot_images must be at least 1, got {self.ema_snapshot_images}")
            if not any(isinstance(average, PowerFunction) for average in self.ema):
                raise ValueError("ema_snapshot_images needs an average of kind power in ema")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        if any(not 0 < share < 1 for share in self.snapshots):
            raise ValueError(f"snapshots must list shares in (0, 1), got {list(self.snapshots)}")


@dataclass(frozen=True)
class HiddenLabels:
    """A denoiser that does not see the labels of some rows: their one-hot vector is zero.

    Attributes:
        hidden: which rows [B].
    """

    model: Preconditioned
    hidden: Tensor

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        one_hot = self.model.one_hot(condition, len(x_t), x_t)
        if one_hot is not None:
            one_hot = one_hot.masked_fill(self.hidden[:, None], 0.0)
        return self.model(x_t, t, one_hot)


class TrainingDiverged(RuntimeError):
    """Too many non-finite steps in a row."""


class TrainingData(Protocol):
    """What the loop asks of a data set."""

    def __len__(self) -> int: ...

    def batch(self, rows: Tensor, conditional: bool, device: torch.device | str = "cpu") -> Batch: ...


class EpochOrder:
    """The k-th image of training: a fresh permutation of the data for every epoch, a function of k alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._epoch, self._order = -1, torch.empty(0)

    def rows(self, start: int, count: int) -> Tensor:
        """Rows of the images number start … start + count − 1."""
        parts = []
        while count > 0:
            epoch, offset = divmod(start, self.size)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch, Stream.ORDER))
                self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
            parts.append(self._order[offset : offset + count])
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)


class Trainer:
    """One model, one objective, one data set: `for report in trainer.steps(): …`."""

    def __init__(
        self,
        model: Preconditioned,
        objective: Objective,
        data: TrainingData,
        optimizer: Optimizer,
        options: TrainOptions,
        device: torch.device | str = "cpu",
        target: Target = Online(),
    ) -> None:
        self.model = model.to(device).train().requires_grad_(True)
        self.objective, self.data, self.options = objective, data, options
        self.device = torch.device(device)
        self.optimizer, self.optimizer_options = optimizer.build(self.model), optimizer
        self.averages = [EMA(self.model, average) for average in options.ema]
        self.target_options = target
        averaged = None if target.decay(0) is None else EMA(self.model, 0.0)
        if averaged is not None:
            averaged.model.train()  # the target draws the student's dropout mask
        self.target_average = averaged
        self.order = EpochOrder(len(data), options.seed)
        self.step = self.images = self.nonfinite_total = 0

    @property
    def averaged(self) -> Preconditioned:
        """The model that is sampled and stored: the first average, in evaluation mode."""
        return self.averages[0].model  # type: ignore[return-value]

    def steps(self) -> Iterator[StepReport]:
        """Take steps until `options.images` are seen, and report each after the optimizer's update."""
        in_a_row = 0
        while self.images < self.options.images:
            report = self._step()
            in_a_row = 0 if report.finite else in_a_row + 1
            yield report
            if in_a_row >= self.options.max_nonfinite:
                raise TrainingDiverged(
                    f"{in_a_row} steps in a row had a non-finite loss or gradient ({report.images:,} images)"
                )

    def _step(self) -> StepReport:
        options = self.options
        torch.manual_seed(mix_seed(options.seed, self.step, Stream.DROPOUT))
        generator = torch.Generator(self.device)
        generator.manual_seed(mix_seed(options.seed, self.step, Stream.NOISE))
        rows = self.order.rows(self.images, options.batch)
        batch = self.data.batch(rows, self.model.num_classes > 0, self.device)
        rate = self.optimizer_options.rate_at(self.images, options.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        self.optimizer.zero_grad(set_to_none=True)
        target: Any = self.model if self.target_average is None else self.target_average.model
        batch, student, target = self._vary(batch, target, generator)
        loss = self.objective(student, target, batch, self.images, generator).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        finite = norm - norm == 0 and bool(torch.isfinite(loss.detach()))
        if finite:
            self.optimizer.step()
            for average in self.averages:
                average.step(self.model, self.images, options.batch)
            decay = self.target_options.decay(self.images)
            if self.target_average is not None and decay is not None:
                self.target_average.update(self.model, decay)
        else:
            self.nonfinite_total += 1
        self.step += 1
        self.images += options.batch
        return StepReport(
            self.step, self.images, float(loss.detach()), rate, norm, finite, self.nonfinite_total
        )

    def _vary(
        self, batch: Batch, target: Preconditioned, generator: torch.Generator
    ) -> tuple[Batch, Denoiser, Denoiser]:
        """x-flips, and labels hidden from student and target alike."""
        n, device = len(batch), generator.device
        if self.options.x_flip:
            flip = torch.rand(n, generator=generator, device=device) < 0.5
            x_0 = torch.where(flip[:, None, None, None], batch.x_0.flip(-1), batch.x_0)
            batch = replace(batch, x_0=x_0)
        if self.options.label_dropout > 0 and self.model.num_classes > 0:
            hidden = torch.rand(n, generator=generator, device=device) < self.options.label_dropout
            return batch, HiddenLabels(self.model, hidden), HiddenLabels(target, hidden)
        return batch, self.model, target

    def _all_averages(self) -> list[EMA]:
        return self.averages + ([] if self.target_average is None else [self.target_average])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        return {
            "step": self.step,
            "images": self.images,
            "nonfinite_total": self.nonfinite_total,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": [average.model.state_dict() for average in self._all_averages()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.images = state["step"], state["images"]
        self.nonfinite_total = state["nonfinite_total"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for average, weights in zip(self._all_averages(), state["averages"], strict=True):
            average.model.load_state_dict(weights)
