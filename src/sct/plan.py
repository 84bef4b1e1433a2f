"""From a validated recipe to the objects of a run: data, model, objective, optimizer, options."""

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch

from sct.core.estimators import NoiseEstimator
from sct.core.noise import EDM, NoiseSchedule, Rescheduled
from sct.core.objectives import Adapted, Consistency, Denoising, Objective
from sct.core.times import Phased, karras_edges
from sct.data.images import DataSplit, load_data
from sct.errors import UserError
from sct.models import load
from sct.nn.precond import Preconditioned
from sct.nn.transfer import transfer
from sct.recipe import ConsistencyRecipe, DiffusionRecipe, Recipe, Section
from sct.train.ema import Online, Target
from sct.train.loop import Trainer
from sct.train.optim import Optimizer
from sct.train.options import TrainOptions
from sct.train.processes import Processes


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
        origin: Any = self.model.meta.get("start_from")
        if not origin:
            return []
        changes = [f"{word}: {', '.join(origin[word])}" for word in ("new", "dropped") if origin[word]]
        source = origin.get("provenance")
        known = f" ({source['format']}, sha256 {source['sha256']}; {source['licence']})" if source else ""
        return [f"started from {origin['path']}{known}", *changes]

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
    model = _model(recipe, data)
    if isinstance(recipe, DiffusionRecipe):
        objective: Objective = Denoising(
            schedule, law=build(recipe.law, "law"), weight=build(recipe.weight, "weight")
        )
    else:
        words = {"reference": _reference, "model": _teacher, "edges": _edges}
        context = {"recipe": recipe, "data": data, "device": device, "schedule": schedule}
        estimator = build(
            recipe.estimator,
            "estimator",
            words=words,
            context=context,
            schedule=schedule,
            mirrored=recipe.train.x_flip,
        )
        _check_solver(recipe, estimator)
        objective = Consistency(
            schedule=schedule,
            pairs=build(recipe.pairs, "pairs", words=words, context=context, schedule=schedule),
            estimator=estimator,
            distance=build(recipe.loss.distance, "loss.distance"),
            weight=build(recipe.loss.weight, "loss.weight"),
            steps=recipe.loss.steps,
            method=recipe.loss.method,
        )
    model.meta = {
        **{key: model.meta[key] for key in ("start_from",) if key in model.meta},
        "objective": recipe.objective,
        "data": recipe.data,
        "class_names": list(data.train.class_names) if recipe.conditional else [],
        "edges": _sampling_edges(objective),
        "mid_t": list(getattr(recipe, "mid_t", ())),
    }
    return Plan(
        data=data,
        model=model,
        # Networks are preconditioned for EDM's process; any other reaches them by its noise-to-signal ratio.
        objective=objective if isinstance(schedule, EDM) else Adapted(objective, schedule),
        optimizer=build(recipe.optimizer, "optimizer"),
        options=build(recipe.train, "train"),
        target=Online() if isinstance(recipe, DiffusionRecipe) else build(recipe.target, "target"),
    )


def build(section: Section, where: str, *, words: Any = None, context: Any = None, **wired: Any) -> Any:
    """The object a section describes. `wired` are the arguments that the rest of the recipe decides."""
    given: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name == "kind" and "kind" not in _arguments(section.builds):
            continue
        if isinstance(value, Section):
            value = build(value, f"{where}.{name}", words=words, context=context, **wired)
        elif isinstance(value, tuple):
            value = tuple(
                build(item, f"{where}.{name}", **wired) if isinstance(item, Section) else item
                for item in value
            )
        if words and name in words:
            value = words[name](value, **context)
        given[name] = value
    accepted = _arguments(section.builds)
    given |= {name: value for name, value in wired.items() if name in accepted}
    try:
        return section.builds(**given)
    except ValueError as error:
        raise UserError(str(error), where) from error


def _arguments(cls: Any) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)


def _model(recipe: Recipe, data: DataSplit) -> Preconditioned:
    if (recipe.network is None) == (recipe.start_from is None):
        raise UserError(
            "a run needs either a network or weights to start from",
            "network, start_from",
            "give one of the two keys",
        )
    if recipe.network is not None:
        torch.manual_seed(recipe.train.seed)
        classes = len(data.train.class_names) if recipe.conditional else 0
        network = build(recipe.network, "network", image_shape=data.train.image_shape, num_classes=classes)
        model = cast(Preconditioned, build(recipe.precond, "precond", network=network))
    else:
        model, origin = _start(recipe, data)
        model.meta = {"start_from": origin}
    if recipe.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = recipe.dropout
        model.network.options["dropout"] = recipe.dropout  # type: ignore[index, operator]
    return model


def _start(recipe: Recipe, data: DataSplit) -> tuple[Preconditioned, dict[str, Any]]:
    """The model to start from, made for the recipe's labels, and where it came from (for `meta`)."""
    teacher = load(str(recipe.start_from))
    made, wanted = list(teacher.image_shape), list(data.train.image_shape)
    if made != wanted:
        raise UserError(f"the model makes images {made}, the data are {wanted}", "start_from")
    classes = len(data.train.class_names) if recipe.conditional else 0
    # Training gives no augmentation labels, so an embedding of them would be weights that nothing uses.
    found = transfer(teacher, classes, augment_dim=0)
    origin: dict[str, Any] = {"path": str(recipe.start_from), "new": found.new, "dropped": found.dropped}
    if "provenance" in teacher.meta:
        origin["provenance"] = teacher.meta["provenance"]
    return found.model, origin


def _sampling_edges(objective: Objective) -> list[float]:
    """A phased model's edges in EDM's time, in which stored models are sampled."""
    if not isinstance(objective, Consistency) or not isinstance(objective.pairs, Phased):
        return []
    edges = torch.tensor(objective.pairs.edges, dtype=torch.float64)
    return objective.schedule.noise_to_signal(edges).tolist()


def _edges(word: tuple[float, ...] | int, *, schedule: NoiseSchedule, **_: Any) -> tuple[float, ...]:
    """Inner edges as given, or the number of phases, spaced on EDM's grid."""
    return karras_edges(word, schedule) if isinstance(word, int) else word


def _reference(word: str, *, recipe: Any, data: DataSplit, device: torch.device | str, **_: Any) -> Any:
    if word == "all" and recipe.conditional:
        raise UserError(
            "references must share the condition, and the recipe is conditional",
            "estimator.reference=all",
            "use reference: class, or conditional: false",
        )
    if word == "class" and not recipe.conditional:
        raise UserError(
            "an unconditional recipe has no classes",
            "estimator.reference=class",
            "use reference: all, or conditional: true",
        )
    return None if word == "batch" else data.train.reference(by_class=word == "class", device=device)


def _teacher(
    path: str, *, recipe: Any, data: DataSplit, device: torch.device | str, schedule: NoiseSchedule
) -> Any:
    teacher = load(path, device).requires_grad_(False)
    classes = len(data.train.class_names) if recipe.conditional else 0
    if (teacher.image_shape, teacher.num_classes) != (data.train.image_shape, classes):
        raise UserError(
            f"the teacher knows images {list(teacher.image_shape)} and {teacher.num_classes} classes, "
            f"the run has {list(data.train.image_shape)} and {classes}",
            "estimator.model",
        )
    return teacher if isinstance(schedule, EDM) else Rescheduled(teacher, schedule)


def _check_solver(recipe: ConsistencyRecipe, estimator: NoiseEstimator) -> None:
    if estimator.local and (recipe.loss.steps > 1 or recipe.loss.method == "heun"):
        raise UserError(
            f"the {recipe.estimator.kind} estimate is valid only at x_t",
            "loss.steps, loss.method",
            "use steps: 1 and method: euler, or another estimator",
        )
