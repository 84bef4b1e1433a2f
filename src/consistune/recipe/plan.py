"""From a validated recipe to the objects of a run: data, model, objective, optimizer, options."""

from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.core.noise import NoiseSchedule, rescheduled
from consistune.core.objectives import Objective
from consistune.core.objectives.lpips import SMALLEST_SIDE
from consistune.core.posterior.bank import make_bank
from consistune.core.times import karras_edges
from consistune.data.images import DataSplit, load_data
from consistune.errors import UserError
from consistune.models import load_tensors, sheet_fault
from consistune.nn.precond import Preconditioned
from consistune.nn.store import check_finite
from consistune.recipe import Recipe, build
from consistune.recipe.first_model import check_class_order, check_space, first_model, load_weights
from consistune.recipe.fit import check_derivative, check_flow_map, check_objective, check_teacher
from consistune.recipe.objectives import objective_class
from consistune.recipe.ranges import check_memory
from consistune.recipe.words import objective_word
from consistune.system.processes import Processes
from consistune.training.ema import Online, Target
from consistune.training.loop import Trainer
from consistune.training.optim import Optimizer
from consistune.training.options import TrainOptions
from consistune.training.precision import Precision, UntilRatio


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, built and checked."""

    data: DataSplit
    model: Preconditioned
    objective: Objective
    optimizer: Optimizer
    options: TrainOptions
    target: Target

    @property
    def notes(self) -> list[str]:
        """What the run should say at its start: of the model it starts from, and what it will not do."""
        return [*self._origin_notes, *self._missing_notes, *self._sigma_notes]

    @property
    def warnings(self) -> list[str]:
        """Of the notes, those of what makes the training another: changed weights, another sigma_data."""
        changes = [f"the given model is adapted: {change}" for change in self._origin_notes[1:]]
        return [*changes, *self._sigma_notes]

    @property
    def _missing_notes(self) -> list[str]:
        notes, every = [], self.options.evaluate_images
        if self.sheet_fault is not None:
            notes.append(f"no pictures of samples will be drawn: {self.sheet_fault}")
        if every is not None and every > self.options.images:
            what = f"train.evaluate_images is {every:,}, the run ends at {self.options.images:,}"
            notes.append(f"the model will not be measured: {what}")
        return notes

    @property
    def _sigma_notes(self) -> list[str]:
        own: Any = getattr(self.model, "sigma_data", None)
        parts = (self.objective, *(getattr(self.objective, name, None) for name in ("weight", "distance")))
        others: set[Any] = {getattr(part, "sigma_data", own) for part in parts} - {own}
        if own is None or not others:
            return []
        given = ", ".join(f"{each:g}" for each in sorted(others))
        return [f"sigma_data is {given} in the loss, and {own:g} in the model: give both alike"]

    @cached_property
    def sheet_fault(self) -> str | None:
        """See `models.sheet_fault`."""
        return sheet_fault(self.model)

    @property
    def _origin_notes(self) -> list[str]:
        origin = self.model.card.start_from
        if origin is None:
            return []
        lists = {"new": origin.new, "dropped": origin.dropped}
        changes = [f"{word}: {', '.join(names)}" for word, names in lists.items() if names]
        source = origin.provenance
        known = f" ({source['format']}, sha256 {source['sha256']}; {source['licence']})" if source else ""
        return [f"started from {origin.path}{known}", *changes]

    def trainer(self, device: torch.device | str = "cpu", processes: Processes | None = None) -> Trainer:
        return Trainer(
            self.model,
            self.objective,
            self.data.train,
            self.optimizer,
            self.options,
            device,
            self.target,
            processes,
        )


@dataclass(frozen=True)
class Given:
    """Objects from Python in the place of what a recipe names.

    Attributes:
        data: in the place of `data`. model: of `start_from` or `network`.
        teacher: of `estimator.model` and `below`. objective: of all keys of the objective.
    """

    data: DataSplit | None = None
    model: Preconditioned | None = None
    teacher: Preconditioned | None = None
    objective: Objective | None = None


def make_plan(recipe: Recipe, device: torch.device | str = "cpu", given: Given = Given()) -> Plan:
    """Build every part. Raises UserError for combinations that cannot work, naming the keys."""
    place, data = torch.device(device), given.data or load_data(recipe.data)
    options: TrainOptions = build(recipe.train, "train")
    _check_data(recipe, data, options)
    schedule = build(recipe.schedule, "schedule")
    kind = type(given.objective) if given.objective else objective_class(type(recipe).builds)
    model = first_model(recipe, data, given.model, two_times=kind.needs_two_times)
    objective: Objective = given.objective or build(
        recipe,
        "",
        words={
            "reference": _reference,
            "model": _teacher,
            "edges": _edges,
            "below": _below,
            "weights": _lpips,
        },
        context={
            "recipe": recipe,
            "data": data,
            "device": device,
            "schedule": schedule,
            "teacher": given.teacher,
            "options": options.on(place),
        },
        schedule=schedule,
        student=model,
        mirrored=recipe.train.x_flip,
    )
    check_objective(recipe, objective, options)
    check_derivative(model, objective)
    if objective.differentiates and options.compile is None:  # the derivative's own pass would stay eager
        options = replace(options, compile=False)
    if options.channels_last and not any(p.ndim == 4 for p in model.parameters()):
        what = "the network has no convolution, whose weights could lie channels last"
        raise UserError(what, "train.channels_last", "leave it out")
    model.card = model.card.updated(
        objective=objective_word(kind),
        data=recipe.data,
        data_sha256=data.train.fingerprint,
        class_names=data.train.class_names if recipe.conditional else (),
        mid_t=getattr(recipe, "mid_t", ()),
        label_dropout=options.label_dropout,
        **({} if data.train.latents is None else {"latents": asdict(data.train.latents)}),
    ).learning(objective)
    return Plan(
        data=data,
        model=model,
        objective=objective,
        optimizer=build(recipe.optimizer, "optimizer"),
        options=options.on(place),
        target=build(recipe.target, "target") if hasattr(recipe, "target") else Online(),
    )


def _check_data(recipe: Recipe, data: DataSplit, options: TrainOptions) -> None:
    """Raises UserError for options that the data do not allow."""
    at_a_time = options.microbatch or options.batch
    check_memory(
        f"{at_a_time:,} images at a time", 4 * at_a_time * prod(data.train.image_shape), "train.batch"
    )
    if options.label_dropout > 0 and not recipe.conditional:
        what = "an unconditional model has no labels to leave out"
        raise UserError(what, "train.label_dropout", "leave the key out, or use conditional: true")
    _check_augmentation(recipe, data)


def _check_augmentation(recipe: Recipe, data: DataSplit) -> None:
    """Raises UserError where latents would be mirrored or warped as if they were pictures."""
    if data.train.latents is None:
        return
    remedy = "leave it out; consistune data prepare --latents … --flip encodes the mirrored pictures too"
    if recipe.train.x_flip:
        raise UserError("mirrored latents are not the mirrored picture's latents", "train.x_flip", remedy)
    if getattr(recipe, "augment", 0):
        raise UserError("these transforms are of pictures, and the data are latents", "augment", remedy)


def _edges(
    word: tuple[float, ...] | int, *, key: str, schedule: NoiseSchedule, **_: Any
) -> tuple[float, ...]:
    """Inner edges as given, or the number of phases, on EDM's grid. Raises UserError for other times."""
    if not isinstance(word, int) and any(not 0 < edge < schedule.t_max for edge in word):
        what = f"an edge lies outside the schedule, whose times reach {schedule.t_max:.3g}"
        raise UserError(what, f"{key}={list(word)}", "give times within it")
    return karras_edges(word, schedule) if isinstance(word, int) else word


def _reference(
    word: str,
    *,
    section: Any,
    key: str,
    recipe: Any,
    data: DataSplit,
    device: torch.device | str,
    **_: Any,
) -> Any:
    part = key.removesuffix(".reference")
    where, bank, size = f"{key}={word}", f"{part}.bank={section.bank}", f"{part}.size={section.size}"
    if word == "all" and recipe.conditional:
        what = "references must share the condition, and the recipe is conditional"
        raise UserError(what, where, "use reference: class, or conditional: false")
    if word == "class" and not recipe.conditional:
        what = "an unconditional recipe has no classes"
        raise UserError(what, where, "use reference: all, or conditional: true")
    if word == "batch":
        if section.bank != "auto":
            remedy = "leave bank out, or use reference: class or all"
            raise UserError("the batch's own images are no bank", bank, remedy)
        return None
    if section.size is not None and section.bank == "sharded":
        what = "random references are drawn from the whole set, of which a process would have its share only"
        raise UserError(what, size, "use bank: device or host")
    images = data.train.reference(by_class=word == "class")
    if section.size is not None and section.size > images.longest:
        what = f"has no effect: the largest group has {images.longest:,} references"
        raise UserError(what, size, "leave size out to take all")
    try:
        return make_bank(images, device, section.bank, may_shard=section.size is None)
    except ValueError as error:
        raise UserError(str(error), bank) from error


def _lpips(
    path: str, *, key: str, data: DataSplit, device: torch.device | str, **_: Any
) -> dict[str, Tensor]:
    """The weights of LPIPS in a file, on the device. Raises UserError where they or the images do not fit."""
    shape = data.train.image_shape
    if min(shape[1:]) < SMALLEST_SIDE or shape[0] not in (1, 3):
        needs = f"LPIPS needs 1 or 3 channels and {SMALLEST_SIDE} pixels a side"
        raise UserError(f"{needs}, the images are {list(shape)}", key, "use kind: huber")
    if not Path(path).is_file():
        raise UserError(
            f"there is no {path}", key, "give VGG16's and LPIPS's weights in one safetensors file"
        )
    weights = {name: value.to(device) for name, value in load_tensors(path).items()}
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()) or (name.startswith("lin") and bool((value < 0).any())):
            what = f"{name} in {path} holds NaN, infinity or a negative weight of a distance"
            raise UserError(what, key, "give the published weights")
    return weights


def _teacher(path: str, **context: Any) -> Any:
    return _frozen(path, **context)


def _below(path: str, **context: Any) -> Any:
    return _frozen(path, flow_map=True, **context)


def _frozen(
    path: str,
    *,
    section: Any,
    key: str,
    recipe: Any,
    data: DataSplit,
    device: torch.device | str,
    schedule: NoiseSchedule,
    options: TrainOptions,
    teacher: Preconditioned | None = None,
    flow_map: bool = False,
    **_: Any,
) -> Any:
    """A trained model under the recipe's schedule; with `flow_map`, one that reaches the trajectory's end."""
    if teacher is None:
        teacher = load_weights(path, key)
    else:
        teacher, path = deepcopy(teacher), "the given model"
    check_finite(teacher, key, "give a model whose training did not diverge")
    teacher = teacher.to(device).eval().requires_grad_(False)
    check_space(teacher, data, key)
    classes = len(data.train.class_names) if recipe.conditional else 0
    if (teacher.image_shape, teacher.num_classes) != (data.train.image_shape, classes):
        knows = f"this model knows images {list(teacher.image_shape)} and {teacher.num_classes} classes"
        has = f"the run has {list(data.train.image_shape)} and {classes}"
        raise UserError(f"{knows}, {has}", key)
    check_class_order(teacher, data, classes, key)
    if flow_map:
        check_flow_map(teacher, path, key)
    else:
        check_teacher(teacher, path, key, section.guidance)
    choice: Any = options.precision
    if isinstance(choice, UntilRatio):  # a flow map is the target itself: no t − r shrinks its rounding
        choice = choice.then if flow_map else choice.first
    precision = Precision(choice, teacher, torch.device(device))
    precision.prepare(teacher)
    return rescheduled(precision.around(teacher), schedule)
