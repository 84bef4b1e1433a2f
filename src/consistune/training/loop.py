"""The training loop: a generator that takes one optimizer step and then reports it.

Everything random in a step is drawn from seeds that name the step (`rng.mix_seed`), and everything
scheduled is a function of the images seen; so the state is the weights, the optimizer, the averages and
a few counters, and a run continued from it repeats the unbroken run bit for bit. No process has a
generator whose state would have to be kept.

What is random is drawn for the whole batch on every process, which then computes its share (`Draws.rows`).
Dropout masks alone are drawn for each part of a batch, from (seed, step, the part's first row).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from consistune.core.noise import NoiseSchedule, rescheduled
from consistune.core.objectives import Draws, Objective
from consistune.core.rng import mix_seed
from consistune.core.types import Batch, Denoiser
from consistune.errors import RunFailed, UserError
from consistune.nn.precond import Preconditioned
from consistune.nn.store import check_finite
from consistune.system.processes import Processes, pending
from consistune.training import sharding
from consistune.training.ema import EMA, Online, Target
from consistune.training.loss_by_time import NAMES, loss_by_time
from consistune.training.optim import Optimizer, require_gradients
from consistune.training.options import TrainOptions
from consistune.training.order import EpochOrder, Stream, TrainingData
from consistune.training.precision import Precision, UntilRatio, Word
from consistune.training.prepare import prepare_network, refuse_without_effect
from consistune.training.soundness import Soundness


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        loss, gradient_norm: of the whole batch, the norm before it is clipped.
        finite: False where the step was skipped for a non-finite loss or gradient, fp16 overflow included.
        stopping: some process was asked to stop, and all have agreed to.
    """

    step: int
    images: int
    loss: float
    learning_rate: float
    gradient_norm: float
    finite: bool
    nonfinite_total: int
    stopping: bool = False


class TrainingDiverged(RunFailed):
    """Too many non-finite steps in a row, or a state that is not sound (`training.soundness`)."""


class StepLoss(nn.Module):
    """The losses of a part of a step as one module, so that a wrapper for several processes sees one pass."""

    def __init__(
        self,
        model: Preconditioned,
        precision: Precision,
        schedule: NoiseSchedule,
        channels_last: bool = False,
    ) -> None:
        """channels_last: the images are put into that memory format, for weights that cannot be."""
        super().__init__()
        self.model, self.precision, self.schedule = model, precision, schedule
        self.channels_last = channels_last

    def forward(self, objective: Objective, target: Preconditioned | None, draws: Draws) -> Tensor:
        """Losses [B] of the objective. target None: the model itself."""
        return objective.losses(self._denoiser(self.model), self._denoiser(target or self.model), draws)

    def _denoiser(self, model: Preconditioned) -> Denoiser:
        """The network, made for EDM's schedule, under the objective's; its passes run in the precision."""
        return rescheduled(self.precision.around(model, self.channels_last), self.schedule)


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
        processes: Processes | None = None,
    ) -> None:
        """`processes` decide the device where they are given. Raises UserError for unfit options."""
        self.processes = processes or Processes(torch.device(device))
        self.device = self.processes.device
        refuse_without_effect(options, model, self.processes)
        options = options.on(self.device)
        self.objective, self.data, self.options = objective, data.resident(self.device), options
        if options.batch % self.processes.count:
            raise UserError(
                f"{options.batch} images do not divide among {self.processes.count} processes", "train.batch"
            )
        self.step = self.images = self.nonfinite_total = self.nonfinite_in_a_row = self.rollbacks = 0
        origin = model.card.start_from
        where = "start_from" if origin is None else origin.path
        check_finite(model, where, "start from a model whose training did not diverge")
        self.model = model.to(self.device).train()
        require_gradients(self.model)
        self.sharded = options.shard
        if options.channels_last and not self.sharded:  # FSDP2 takes no such weights
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.card = model.card.trained(objective, data, conditional=model.num_classes > 0)
        self.averages = [EMA(self.model, average) for average in options.ema]
        self.target_options = target
        self.target_average = None if target.decay(0) is None else EMA(self.model, 0.0)
        self.precision = Precision(self._word(), self.model, self.device)
        self._prepare()
        self.optimizer, self.optimizer_options = optimizer.build(self.model), optimizer
        if self.sharded:
            for group in self.optimizer.param_groups:  # one kernel cannot take split and whole tensors
                group["foreach"] = group["fused"] = False
        self.order = EpochOrder(len(data), options.seed)
        self.by_time = torch.zeros(2, len(NAMES), device=self.device)

    def _prepare(self) -> None:
        """Prepare the networks of a step as the options say; their parameters keep their names."""
        if self.target_average is not None:
            self.target_average.model.train()  # it draws the student's dropout mask
        for model in self._networks():
            self.precision.prepare(model)
            prepare_network(model.network, self.options)
        images_last = bool(self.options.channels_last) and self.sharded
        schedule = self.objective.schedule
        self.step_loss: nn.Module = StepLoss(self.model, self.precision, schedule, images_last)
        if self.sharded:
            sharding.shard(self.step_loss, self.processes)
            for average in self._all_averages():
                sharding.shard(average.model, self.processes)
        else:
            self.step_loss = self.processes.replicated(self.step_loss)

    def _networks(self) -> list[Preconditioned]:
        """Those that compute in a step."""
        return [self.model] + ([] if self.target_average is None else [self.target_average.model])

    def _word(self) -> Word:
        """The precision of the next step."""
        choice: Any = self.options.precision
        return choice.at(self.objective, self.images) if isinstance(choice, UntilRatio) else choice

    @property
    def averaged(self) -> Preconditioned:
        """The model that is sampled and stored: the first average, in evaluation mode.

        Sharded weights are gathered for it: every process must read it, and each gets the full model.
        """
        return self.averaged_by(self.averages[0])

    def averaged_by(self, average: EMA) -> Preconditioned:
        """The model of any average, as `averaged`."""
        return sharding.gathered(average.model) if self.sharded else average.model

    def steps(self, stop: Callable[[], bool] = lambda: False) -> Iterator[StepReport]:
        """Take steps until `options.images` are seen, and report each after the optimizer's update.

        `stop` is called once a step; all processes report a stop in the same step.
        Raises TrainingDiverged after `options.max_nonfinite` non-finite steps in a row.
        """
        while self.images < self.options.images:
            report = self._step(stop())
            yield report
            if self.nonfinite_in_a_row >= self.options.max_nonfinite:
                raise TrainingDiverged(
                    f"{self.nonfinite_in_a_row} steps in a row had a non-finite loss or gradient "
                    f"(step {report.step}, {report.images:,} images, loss {report.loss:.4g})"
                )

    def _step(self, stop: bool) -> StepReport:
        rate = self.optimizer_options.rate_at(self.images, self.options.images)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if (word := self._word()) != self.precision.word:
            self.precision.word = word
            for model in self._networks():
                self.precision.prepare(model)
        self.optimizer.zero_grad(set_to_none=True)
        if self.options.compile == "graphs":  # nothing of the last step's graphs is read any more
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        draws = self._draw()
        losses = [self._backward(draws, part) for part in self._parts()]
        loss, by_time, stopping = self._reduced(torch.cat(losses), draws.times.t, stop)
        self.precision.scaler.unscale_(self.optimizer)
        norm = sharding.gradient_norm(self.model, self.processes)
        # The step's one wait for a card: whether to take the step, and what to report, in a single reading.
        loss_now, norm_now, stop_now = torch.stack([loss, norm.to(loss), stopping]).tolist()
        finite = math.isfinite(loss_now) and math.isfinite(norm_now)
        if finite:
            self._update(norm_now)
            self.by_time += by_time
            self.nonfinite_in_a_row = 0
        else:
            self.nonfinite_total += 1
            self.nonfinite_in_a_row += 1
        self.precision.scaler.update()
        self.step += 1
        self.images += self.options.batch
        return StepReport(
            self.step,
            self.images,
            loss_now,
            rate,
            norm_now,
            finite,
            self.nonfinite_total,
            stopping=stop_now > 0,
        )

    def soundness(self) -> Soundness:
        """Follows the run from its present state, which is taken for sound."""
        return Soundness([self.model, *(average.model for average in self._all_averages())], self.processes)

    def _draw(self) -> Draws:
        """All that is random in the step except dropout, for the whole batch."""
        options = self.options
        generator = torch.Generator(self.device)
        generator.manual_seed(self._seed(Stream.NOISE))
        rows = self.order.rows(self.images, options.batch)
        batch = self.data.batch(rows, self.model.num_classes > 0, self.device)
        if options.x_flip:
            batch = flipped(batch, generator)
        if options.label_dropout > 0 and self.model.num_classes > 0:
            hidden = torch.rand(len(batch), generator=generator, device=self.device) < options.label_dropout
            batch = replace(batch, hidden=hidden)
        return self.objective.draw(batch, self.images, generator)

    def _parts(self) -> list[slice]:
        return self.processes.parts(self.options.batch, self.options.microbatch)

    def _backward(self, draws: Draws, part: slice) -> Tensor:
        """Add a part's gradients of the batch's mean loss; returns its losses, detached."""
        if self.sharded or self.options.compile:
            sharding.force_weight_norms(self.model)
        torch.manual_seed(self._seed(Stream.DROPOUT, part.start))
        target: Any = None if self.target_average is None else self.target_average.model
        with pending(self.step_loss, last=part == self._parts()[-1]):
            losses: Tensor = self.step_loss(self.objective, target, draws.rows(part))
            # Averaged over the processes, the gradients become those of the sum over the batch, by its size.
            mean = losses.sum() / (self.options.batch / self.processes.count)
            with self.precision.scope():
                self.precision.scaler.scale(mean).backward()  # type: ignore[no-untyped-call]
        return losses.detach()

    def _reduced(self, losses: Tensor, t: Tensor, stop: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Over all processes, in one exchange: the mean loss, the losses by t, and whether any must stop."""
        parts = self._parts()
        table = loss_by_time(t[parts[0].start : parts[-1].stop], losses)
        own = torch.stack([losses.sum(), losses.new_full((), float(stop))])
        every = self.processes.sum(torch.cat([own, table.flatten().to(own)]))
        return every[0] / self.options.batch, every[2:].view_as(table), every[1]

    def _update(self, norm: float) -> None:
        clip = self.options.clip_norm
        if clip is not None and norm > clip:
            torch._foreach_mul_(sharding.gradients(self.model), clip / norm)
        self.optimizer.step()
        for average in self.averages:
            average.step(self.model, self.images, self.options.batch)
        decay = self.target_options.decay(self.images)
        if self.target_average is not None and decay is not None:
            self.target_average.update(self.model, decay)

    def _seed(self, stream: Stream, row: int = 0) -> int:
        """The seed of one stream in this step. After a return to a checkpoint the seeds are others."""
        extra = (self.rollbacks, row) if self.rollbacks or row else ()
        return mix_seed(self.options.seed, self.step, stream, *extra)

    def _all_averages(self) -> list[EMA]:
        return self.averages + ([] if self.target_average is None else [self.target_average])

    COUNTERS = ("step", "images", "nonfinite_total", "nonfinite_in_a_row", "rollbacks")

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as full tensors also where they are sharded.

        Sharded weights are gathered for it on the CPU: every process must call it.
        """
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": [average.model.state_dict() for average in self._all_averages()],
        }
        counters = {name: getattr(self, name) for name in self.COUNTERS}
        rest = {
            "scaler": self.precision.scaler.state_dict(),
            "by_time": self.by_time,
            "data_sha256": self.model.card.data_sha256,
        }
        return {**counters, **sharding.whole(state), **rest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state, of any number of processes, sharded or not.

        Raises UserError where the images are not those that the state was trained on, or its weights are
        those of another network.
        """
        if state["data_sha256"] not in (None, self.model.card.data_sha256):
            raise UserError(
                "the training images are not those that this run began with",
                str(self.model.card.data),
                "bring those back, or begin another run",
            )
        stored, own = ({k: v.shape for k, v in w.items()} for w in (state["model"], self.model.state_dict()))
        if stored != own:
            odd = min(name for name in stored | own if stored.get(name) != own.get(name))
            what = f"the weights are not those of this run's network, beginning with {odd!a}"
            raise UserError(
                what, f"checkpoint of step {state['step']}", "bring the run's own checkpoint back"
            )
        for name in self.COUNTERS:
            setattr(self, name, state[name])
        sharding.load(self.model, state["model"])
        sharding.load_optimizer(self.optimizer, state["optimizer"])
        for average, weights in zip(self._all_averages(), state["averages"], strict=True):
            sharding.load(average.model, weights)
        if state["scaler"]:
            self.precision.scaler.load_state_dict(state["scaler"])
        self.by_time = state["by_time"].to(self.device)


def crosses(before: int, after: int, every: int | None) -> bool:
    """Whether a multiple of `every` lies in (before, after]; None: never."""
    return every is not None and before // every != after // every


def require_sound(soundness: Soundness, report: StepReport, finished: bool = False) -> None:
    """Raises TrainingDiverged where the trainer's state must not be stored. All processes call it."""
    fault = soundness.fault(finished)
    if fault is not None:
        raise TrainingDiverged(
            f"diverged at step {report.step} ({report.images:,} images, loss {report.loss:.4g}): {fault}"
        )


def sound_steps(trainer: Trainer) -> Iterator[StepReport]:
    """The trainer's steps, where no run's folder looks after them.

    Raises TrainingDiverged as `Trainer.steps` does, and where the state is not sound every `log_images` or
    at the end.
    """
    soundness, options = trainer.soundness(), trainer.options
    for report in trainer.steps():
        soundness.follow(report.loss)
        finished = report.images >= options.images
        if finished or crosses(report.images - options.batch, report.images, options.log_images):
            require_sound(soundness, report, finished)
        yield report


def flipped(batch: Batch, generator: torch.Generator) -> Batch:
    """Every other image mirrored left to right, at random."""
    flip = torch.rand(len(batch), generator=generator, device=generator.device) < 0.5
    return replace(batch, x_0=torch.where(flip[:, None, None, None], batch.x_0.flip(-1), batch.x_0))
