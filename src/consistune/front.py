"""The front door for Python: train, tune, evaluate, and the steps of a training one by one.

    import consistune as ct
    teacher = ct.train(network, data, images=2_000_000)                   # a diffusion model
    model = ct.tune(teacher, data, method="sct", images=400_000)          # a model of one step
    images = ct.sample(model, seeds=range(64))

A method is a recipe of the package, `digits-METHOD`: its sections, with durations scaled to the images given
here. What is not a name may be a torch object of `core`.
"""

import atexit
import copy
import inspect
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import nn

from consistune.core.objectives import Objective
from consistune.data.images import DataSplit
from consistune.data.inputs import as_split, check_classes
from consistune.errors import UserError
from consistune.evaluation.request import LabelRule
from consistune.evaluation.sources import ModelSource
from consistune.evaluation.while_training import training_evaluation
from consistune.metrics.scores import score_suite
from consistune.metrics.suite import Suite
from consistune.models import default_sampler, picture_shape
from consistune.nn.module import wrap
from consistune.nn.precond import Preconditioned
from consistune.recipe import Recipe, shipped_recipes, to_yaml
from consistune.recipe.plan import Given, Plan, make_plan
from consistune.recipe.scaled import scaled_recipe
from consistune.recipe.settings import names_frozen, plain, with_arguments
from consistune.system.files import check_writable
from consistune.system.host import pick_device
from consistune.training.folder import RECIPE, noted, weights_digest
from consistune.training.loop import StepReport, Trainer, sound_steps
from consistune.training.run import RunFolder

TEMPLATE = "digits-"
DIFFUSION = "edm"


@dataclass(frozen=True)
class State:
    """What `steps` yields after each step of a training.

    Attributes:
        report: step, images seen, loss, learning rate, gradient norm.
        trainer: everything else; its methods may be called between two steps.
    """

    report: StepReport
    trainer: Trainer

    @property
    def step(self) -> int:
        return self.report.step

    @property
    def images(self) -> int:
        return self.report.images

    @property
    def loss(self) -> float:
        return self.report.loss

    @property
    def model(self) -> Preconditioned:
        """The averaged model now: it changes with the next step."""
        return self.trainer.averaged


OnStep = Callable[[State], object]
"""Called after each step. The training ends early where it returns True."""


def methods() -> tuple[str, ...]:
    """The methods that `tune` knows by name."""
    names = (name.removeprefix(TEMPLATE) for name in shipped_recipes() if name.startswith(TEMPLATE))
    return tuple(name for name in names if name != DIFFUSION)


def train(
    network: str | Mapping[str, Any] | nn.Module,
    data: Any,
    *,
    images: int,
    on_step: OnStep | None = None,
    **options: Any,
) -> Preconditioned:
    """Train a diffusion model (EDM, 2206.00364) on images; returns it with its averaged weights.

    Args:
        network: a name of ours ("mlp", "patch-unet", "song", …), its section of a recipe {"kind": …}, or a
            module F(x, c_noise[, labels]) as `wrap` describes, which is copied and stays as it is.
        data: see `data.inputs.as_split`; use that function to give labels, a range, or held-out images.
        images: training images to see in all.
        options: those of `steps`.
    """
    return _last(steps(network, data, images=images, method=DIFFUSION, **options), on_step)


def tune(
    teacher: Preconditioned,
    data: Any,
    *,
    images: int,
    method: str | Objective = "sct",
    on_step: OnStep | None = None,
    **options: Any,
) -> Preconditioned:
    """Tune a diffusion model into a model of one or a few steps; the teacher stays as it is.

    Args:
        method: one of `methods()`, or an objective made of parts of `consistune.core`.
        data, images, on_step, options: as for `train`.
    """
    return _last(steps(teacher, data, images=images, method=method, **options), on_step)


_WHOLE = ContextVar("whole", default=False)
"""Whether all of a training is one call: a signal in its callback stops it too, when the state is saved."""


def _last(states: Iterator[State], on_step: OnStep | None) -> Preconditioned:
    if not (on_step is None or callable(on_step)):
        raise UserError(f"{on_step!r:.60} is no function", "on_step", "give f(state)")
    state, before = None, _WHOLE.set(True)
    try:
        with closing(cast(Generator[State], states)):  # else a traceback that a notebook keeps holds the lock
            for state in states:
                ended = on_step is not None and on_step(state) is True
                if ended and state.images < state.trainer.options.images:
                    break
    finally:
        _WHOLE.reset(before)
    if state is None:
        raise UserError("the training is finished already", "out", "consistune.load reads its model")
    return state.model.eval()


def steps(
    model: str | Mapping[str, Any] | nn.Module,
    data: Any,
    *,
    images: int,
    method: str | Objective = "sct",
    batch: int = 128,
    lr: float | None = None,
    seed: int = 0,
    conditional: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    device: str | torch.device = "auto",
) -> Iterator[State]:
    """The steps of a training, one by one: `for state in steps(teacher, data, images=…): …`.

    Args:
        model: what `train` or `tune` begins with. A copy of it is trained.
        method: "edm" for a diffusion model, one of `methods()`, or an objective.
        batch: images a step. lr: the learning rate; None: the method's.
        conditional: use the labels; None: if the teacher does, or, for a new network, if there are classes.
        settings: other keys of the recipe, {"loss.distance.c": 0.03, "train.ema": [0.999]}.
        out: a run's folder: log, checkpoints, model. A run that was stopped there, or left before its end, is
            continued by the same call, unless it began with another objective or teacher. Without a folder
            a training that is stopped is lost. `train.evaluate_images` in `settings` has the model measured
            there.
        device: "auto": CUDA if there is a device, else the CPU.

    What the training changes of the teacher, or will leave out, stands in the run's log; without a folder,
    what changes its meaning is a warning. Torch's generators are the caller's between two steps and after.

    Raises UserError for arguments that do not fit; training.loop.TrainingDiverged as a run does; with `out`,
    training.run.Interrupted after Ctrl-C or SIGTERM in a step, when the state is saved.
    """
    split = as_split(data)
    place = pick_device(str(device), "device")
    _check_method(method)
    folder = _folder(out)
    with _users_generators(place):
        check_classes(split.train, _conditional(conditional, model, split), getattr(model, "num_classes", 0))
        own, network = _first(model, split, method, conditional)
        chosen = {"conditional": _conditional(conditional, own, split), "network": network}
        arguments = {"images": images, "batch": batch, "seed": seed} | ({} if lr is None else {"lr": lr})
        objective = None if isinstance(method, str) else method
        chosen |= with_arguments(settings, arguments, objective, folder)
        recipe = method_recipe(method, split.train.name, chosen)
        teacher = model if isinstance(model, Preconditioned) and not names_frozen(chosen) else None
        plan = make_plan(recipe, place, Given(split, own, teacher, objective))
        trainer = plan.trainer(place)
        run = None if folder is None else _opened(folder, recipe, plan, trainer, model, objective)
    if run is None:
        for note in plan.warnings:
            warnings.warn(note, stacklevel=2)
    states = _states(trainer, run)
    _OPEN.add(states)
    yield from states


def _check_method(method: Any) -> None:
    """Raises UserError for what is neither a name nor an objective."""
    if isinstance(method, type):
        raise UserError(f"{method.__name__} is a class", "method", f"give {method.__name__}(…)")
    if not isinstance(method, str) and not hasattr(method, "learns"):
        what = f"{type(method).__name__} is no method"
        raise UserError(what, "method", "give a name, or an objective of consistune.core")


def _folder(out: str | Path | None) -> Path | None:
    """The folder that is given. Raises UserError where none can be written there."""
    if out == "":
        raise UserError("is empty", "out", 'give a path; "." is the current folder')
    folder = None if out is None else Path(os.path.expanduser(out))
    if folder is not None:
        check_writable(folder, "out", folder=True)
    return folder


_OPEN: WeakSet[Generator[State]] = WeakSet()
"""The trainings that are not at their end."""


@atexit.register
def _leave_all() -> None:
    """Leave what is still open where the program ends, by an error in the caller's loop for example."""
    for states in list(_OPEN):
        if inspect.getgeneratorstate(states) != inspect.GEN_RUNNING:  # in another thread
            states.close()


def _states(trainer: Trainer, run: RunFolder | None) -> Generator[State]:
    """The states after the steps; that of a run is saved where the caller leaves before the last."""
    reports = cast(Generator[StepReport], sound_steps(trainer) if run is None else run.steps(trainer))
    with closing(reports):
        while True:
            with _users_generators(trainer.device):
                report = next(reports, None)
            if report is None:
                return
            try:
                yield State(report, trainer)
            except GeneratorExit:
                if run is not None:
                    run.leave(trainer)
                raise


@contextmanager
def _users_generators(device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and of CUDA are after the block as they were before."""
    cuda = device.type == "cuda" or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else ()):
        yield


OBJECTIVE, GIVEN = "objective.txt", "weights.txt"


def _opened(
    folder: Path,
    recipe: Recipe,
    plan: Plan,
    trainer: Trainer,
    given: Any,
    objective: Objective | None,
) -> RunFolder:
    """The run in a folder; one that begins notes in its log what the plan has to say.

    Raises UserError for a run that began with another objective, or with other weights where these are
    trained: a fresh network's are others at each call.
    """
    own = "" if objective is None else re.sub(r" at 0x[0-9a-f]+", "", repr(objective)) + "\n"
    digest = weights_digest(given) if isinstance(given, nn.Module) else ""
    trained = isinstance(given, Preconditioned) and given.card.objective is not None
    where, others = f"out={str(folder)!r}", False
    measured, begun = plan.options.evaluate_images is not None, (folder / RECIPE).exists()
    evaluate = training_evaluation(plan.data.to_look_at, device=trainer.device) if measured else None
    with noted(folder / OBJECTIVE, own) as first, noted(folder / GIVEN, digest) as weights:
        if first != own:
            what = "the run there has another objective"
            raise UserError(what, where, "give another folder, or the objective it began with")
        others = weights not in ("", digest)
        if others and trained:
            what = "the folder's run began from other weights"
            raise UserError(what, where, "take another out, or give the weights it began with")
        run = RunFolder.opened(
            folder, to_yaml(recipe), trainer, evaluate=evaluate, between_steps=_WHOLE.get()
        )
    if others:
        run.warn("the network has other weights than the run began with, which goes on with its own")
    for note in () if begun else plan.notes:
        run.say(note)
    return run


def _first(
    model: Any, data: DataSplit, method: str | Objective, conditional: bool | None
) -> tuple[Preconditioned | None, Any]:
    """The model that is trained, a copy, and None; or None and the recipe's section of a new network."""
    if isinstance(model, Preconditioned):
        return copy.deepcopy(model), None
    if method != DIFFUSION:
        what = f"tuning needs a trained diffusion model, {type(model).__name__} is given"
        raise UserError(what, "teacher", "train one with consistune.train, or consistune.load one")
    if isinstance(model, nn.Module):
        classes = len(data.train.class_names) if _conditional(conditional, None, data) else 0
        return wrap(copy.deepcopy(model), data.train.image_shape, classes), None
    if not isinstance(model, str | Mapping):
        seen = model.__name__ if isinstance(model, type) else type(model).__name__
        remedy = f"give {seen}()" if isinstance(model, type) else 'give a name such as "mlp", or an nn.Module'
        raise UserError(f"{seen} is no network", "network", remedy)
    return None, {"kind": model} if isinstance(model, str) else dict(model)


def _conditional(wanted: bool | None, model: Any, data: DataSplit) -> bool:
    """model: what the training begins with; only a model of ours knows whether it has classes."""
    if wanted is not None:
        return wanted
    if isinstance(model, Preconditioned):
        return model.num_classes > 0
    return len(data.train.class_names) > 1


def method_recipe(method: str | Objective, data: str, settings: Mapping[str, Any]) -> Recipe:
    """The recipe of a method with these keys set, and its durations scaled to `train.images`.

    Raises UserError for an unknown method, and as `recipe.validate` does.
    """
    word = method if isinstance(method, str) else "ect"  # an objective brings its own parts
    if word not in (DIFFUSION, *methods()):
        raise UserError(f"unknown method {word!r}", "method", f"use one of {', '.join(methods())}")
    images, conditional = settings["train.images"], settings["conditional"]
    if not isinstance(images, int) or images < 1:
        raise UserError(f"{images!r} is not a number of images", "images", "give an integer from 1 on")
    return scaled_recipe(TEMPLATE + word, data, conditional, images, settings)


def evaluate(
    model: Preconditioned,
    data: Any,
    *,
    samples: int = 2_000,
    steps: int | None = None,
    metrics: Sequence[str] | None = None,
    features: str | None = None,
) -> dict[str, float]:
    """Measure samples of a model against images: {metric: number}.

    The first is the Fréchet distance to the training images in % of their variance of features
    (`metrics.scores`); `consistune evaluate` does the same with blocks, error bars and a page.

    Args:
        data: as for `train`. samples: how many are drawn; few of them bias a distance upwards.
        steps: of the sampler; None: the model's own number. Classes come as often as in the data, or, where
            these have others than the model, in turn.
        metrics, features: names as for the command; None: what the data allow.

    Raises UserError for arguments that do not fit, and for data of other images than the model's.
    """
    split = as_split(data)
    if not isinstance(model, Preconditioned):
        what = f"{type(model).__name__} is no model"
        raise UserError(what, "model", "give one of consistune.load, train or tune")
    samples = plain(samples, "samples")
    if not isinstance(samples, int) or samples < 2:
        raise UserError(f"{samples!r} samples cannot be measured", "samples", "give 2 or more, better 2,000")
    if picture_shape(model) != split.to_look_at.train.image_shape:
        shapes = list(picture_shape(model)), list(split.to_look_at.train.image_shape)
        raise UserError(f"the model makes images {shapes[0]}, the data are {shapes[1]}", "data")
    data = split.to_look_at
    if isinstance(metrics, str):
        raise UserError(f"{metrics!r} is one name", "metrics", f"give [{metrics!r}]")
    suite = score_suite(data, features, next(model.parameters()).device)
    if metrics is not None:
        suite = Suite(suite.setup, tuple(metrics))
    try:
        known = len(data.train.class_names) == model.num_classes
        rule: LabelRule = "data" if known else "balanced"
        source = ModelSource(model, default_sampler(model, steps), data.train.labels, rule)
    except (ValueError, TypeError) as error:
        raise UserError(str(error), "steps") from error
    return suite.measure(*source(range(samples))).values
