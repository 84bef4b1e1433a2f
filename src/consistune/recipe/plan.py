"""From a validated recipe to the objects of a run: data, model, objective, optimizer, options."""

from dataclasses import dataclass
from typing import Any

import torch

from consistune.core.noise import NoiseSchedule, rescheduled
from consistune.core.objectives import Objective
from consistune.core.posterior.bank import make_bank
from consistune.core.times import karras_edges
from consistune.data.images import DataSplit, load_data
from consistune.errors import UserError
from consistune.nn.precond import Preconditioned
from consistune.recipe import Recipe, build
from consistune.recipe.first_model import first_model, load_weights
from consistune.system.processes import Processes
from consistune.train.ema import Online, Target
from consistune.train.loop import Trainer
from consistune.train.optim import Optimizer
from consistune.train.options import TrainOptions


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
        """What the run's log should say of the model it starts from."""
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


def make_plan(recipe: Recipe, device: torch.device | str = "cpu") -> Plan:
    """Build every part. Raises UserError for combinations that cannot work, naming the keys."""
    data = load_data(recipe.data)
    schedule = build(recipe.schedule, "schedule")
    model = first_model(recipe, data)
    objective: Objective = build(
        recipe,
        "",
        words={"reference": _reference, "model": _teacher, "edges": _edges},
        context={"recipe": recipe, "data": data, "device": device, "schedule": schedule},
        schedule=schedule,
        student=model,
        mirrored=recipe.train.x_flip,
    )
    if objective.needs_unlabelled and recipe.train.label_dropout == 0:
        raise UserError(
            "guidance in training asks the model without labels, which nothing trains",
            "train.label_dropout",
            "give a share of the images, such as 0.1",
        )
    for key in ("compile", "shard"):
        if objective.differentiates and getattr(recipe.train, key):
            raise UserError(
                f"{recipe.objective} takes derivatives, for which no network is compiled or split",
                f"train.{key}",
                "leave it out",
            )
    model.card = model.card.updated(
        objective=recipe.objective,
        data=recipe.data,
        data_sha256=data.train.fingerprint,
        class_names=data.train.class_names if recipe.conditional else (),
        mid_t=getattr(recipe, "mid_t", ()),
    ).learning(objective)
    return Plan(
        data=data,
        model=model,
        objective=objective,
        optimizer=build(recipe.optimizer, "optimizer"),
        options=build(recipe.train, "train"),
        target=build(recipe.target, "target") if hasattr(recipe, "target") else Online(),
    )


def _edges(word: tuple[float, ...] | int, *, schedule: NoiseSchedule, **_: Any) -> tuple[float, ...]:
    """Inner edges as given, or the number of phases, spaced on EDM's grid."""
    return karras_edges(word, schedule) if isinstance(word, int) else word


def _reference(
    word: str, *, section: Any, recipe: Any, data: DataSplit, device: torch.device | str, **_: Any
) -> Any:
    where, bank = f"estimator.reference={word}", f"estimator.bank={section.bank}"
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
        raise UserError(what, f"estimator.size={section.size}", "use bank: device or host")
    images = data.train.reference(by_class=word == "class")
    try:
        return make_bank(images, device, section.bank, may_shard=section.size is None)
    except ValueError as error:
        raise UserError(str(error), bank) from error


def _teacher(
    path: str, *, recipe: Any, data: DataSplit, device: torch.device | str, schedule: NoiseSchedule, **_: Any
) -> Any:
    teacher = load_weights(path, "estimator.model", device).requires_grad_(False)
    classes = len(data.train.class_names) if recipe.conditional else 0
    if (teacher.image_shape, teacher.num_classes) != (data.train.image_shape, classes):
        knows = f"the teacher knows images {list(teacher.image_shape)} and {teacher.num_classes} classes"
        has = f"the run has {list(data.train.image_shape)} and {classes}"
        raise UserError(f"{knows}, {has}", "estimator.model")
    return rescheduled(teacher, schedule)
