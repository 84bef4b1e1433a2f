"""What a recipe's words mean: the only place where a word in a file becomes an object.

A recipe is YAML. Each part of the method is a section with a `kind`; PARTS says which class a kind is, and
the section's other keys are that class's arguments, checked strictly. Adding an estimator, a gap, a
distance or a network is its own file and one line here.
"""

import inspect
from collections.abc import Callable
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from consistune.core import estimators, noise, objectives, times
from consistune.core.posterior.bank import BankKind
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.train import ema, optim
from consistune.train.options import TrainOptions

PARTS: dict[Any, dict[str, Callable[..., Any]]] = {
    noise.NoiseSchedule: {
        "edm": noise.EDM,
        "vp": noise.VP,
        "rectified-flow": noise.RectifiedFlow,
        "trigonometric": noise.Trigonometric,
    },
    times.TimePairs: {
        "lognormal": times.LogNormalPairs,
        "grid": times.GridPairs,
        "phased": times.Phased,
    },
    times.Gap: {"sigmoid": times.SigmoidGap, "const": times.ConstGap},
    times.GridSize: {
        "fixed": times.FixedGrid,
        "growing": times.GrowingGrid,
        "doubling": times.DoublingGrid,
    },
    times.LogNormal: {"lognormal": times.LogNormal},
    estimators.NoiseEstimator: {
        "one-sample": estimators.OneSample,
        "score-identity": estimators.ScoreIdentity,
        "teacher": estimators.Teacher,
        "blend": estimators.Blend,
    },
    objectives.Distance: {
        "huber": objectives.Huber,
        "squared-l2": objectives.SquaredL2,
        "l1": objectives.L1,
    },
    objectives.Weight: {
        "inverse-gap": objectives.InverseGap,
        "snr-plus": objectives.SNRPlus,
        "inverse-c-out": objectives.InverseCOut,
        "uniform": objectives.Uniform,
    },
    optim.RateSchedule: {
        "constant": optim.Constant,
        "cosine": optim.Cosine,
        "linear-decay": optim.LinearDecay,
        "inverse-square-root": optim.InverseSquareRoot,
    },
    ema.Average: {
        "half-life": ema.HalfLife,
        "power": ema.PowerFunction,
    },
    ema.Target: {
        "online": ema.Online,
        "average": ema.FixedAverage,
        "growing-average": ema.GrowingAverage,
    },
    store.Network: dict(store.NETWORKS),
    Preconditioned: dict(store.PRECONDITIONERS),
}

WORDS: dict[tuple[Any, str], tuple[Any, Any]] = {
    (estimators.ScoreIdentity, "reference"): (Literal["batch", "class", "all"], ...),
    (estimators.ScoreIdentity, "bank"): (BankKind, "auto"),
    (estimators.Teacher, "model"): (str, ...),
    (times.Phased, "edges"): (tuple[float, ...] | Annotated[int, Field(ge=1)], ...),
}
"""Arguments that a recipe names by a word, with that word's type and default; `bank` says where the
reference lives."""

WIRED = {"schedule", "image_shape", "num_classes", "network", "mirrored", "bandwidth", "nearest"}
"""Arguments that the rest of the recipe decides: `mirrored` follows train.x_flip; bandwidth and nearest are
for continuous conditions, which no data set here has."""


class Section(BaseModel):
    """A part of a recipe; `builds` is the class that its keys are the arguments of."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    builds: ClassVar[Any] = None


@cache
def section(cls: Any, kind: str | None = None) -> type[Section]:
    """The strict model of a class's arguments (and of its kind, where it is one of several)."""
    hints = get_type_hints(cls.__init__)
    fields: dict[str, Any] = {} if kind is None else {"kind": (Literal[kind], kind)}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        if (cls, name) in WORDS:
            fields[name] = WORDS[cls, name]
        elif name not in WIRED:
            default = ... if parameter.default is parameter.empty else _default(parameter.default)
            fields[name] = (_in_sections(hints[name], inside=cls), default)
    fields |= {name: word for (owner, name), word in WORDS.items() if owner is cls and name not in fields}
    made = cast(type[Section], create_model(kind or cls.__name__, __base__=Section, **fields))
    made.builds = cls
    return made


def _in_sections(hint: Any, inside: Any) -> Any:
    """A type in which every part has become the union of its sections: also in `tuple[float | Part, ...]`."""
    if hint in PARTS:
        return one_of(hint, inside=inside)
    arguments = tuple(_in_sections(argument, inside) for argument in get_args(hint))
    if arguments == get_args(hint):
        return hint
    return Union[arguments] if get_origin(hint) in (Union, UnionType) else get_origin(hint)[arguments]  # noqa: UP007


@cache
def one_of(part: Any, inside: Any = None) -> Any:
    """The union, told apart by `kind`, of all sections of a part; a kind does not hold another of itself."""
    sections = [section(cls, kind) for kind, cls in PARTS[part].items() if cls is not inside]
    if len(sections) == 1:
        return sections[0]
    return Annotated[Union[tuple(sections)], Field(discriminator="kind")]  # noqa: UP007 - built at run time


def _default(value: Any) -> Any:
    """A default that is itself a part becomes its section."""
    for table in PARTS.values():
        for kind, cls in table.items():
            if type(value) is cls:
                made = section(cls, kind)  # type: ignore[arg-type]
                own = {n: _default(getattr(value, n)) for n in made.model_fields if n != "kind"}
                return made.model_construct(kind=kind, **own)
    return value


class Common(Section):
    """What both objectives share.

    `dropout` and `dropout_res` (EDM2's networks: the finest resolution at which blocks drop out) change the
    model that is made or started from, and are stored with it. `precond` puts its network into another form;
    None: EDM's for a new network, its own for weights that are started from.
    """

    data: str = "digits"
    conditional: bool = True
    network: one_of(store.Network) | None = None  # type: ignore[valid-type]
    start_from: str | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    dropout_res: Annotated[int, Field(ge=1)] | None = None
    precond: one_of(Preconditioned) | None = None  # type: ignore[valid-type]
    schedule: one_of(noise.NoiseSchedule) = section(noise.EDM, "edm")()  # type: ignore[valid-type]
    optimizer: section(optim.Optimizer) = section(optim.Optimizer)()  # type: ignore[valid-type]
    train: section(TrainOptions)  # type: ignore[valid-type]


class DiffusionRecipe(Common):
    """Pretraining: a denoiser.

    `uncertainty`: the loss is weighed by the learned log-variance u(σ) of `precond: {kind: edm2}` (EDM2's
    eq. 21); elsewhere that head is left out of the model. `augment`: EDM's augmentation of the images, each
    of its transforms with this probability (`train.augment`); the network needs augment_dim: 9.
    """

    objective: Literal["diffusion"]
    law: one_of(times.LogNormal) = _default(times.LogNormal(-1.2, 1.2))  # type: ignore[valid-type]
    weight: one_of(objectives.Weight) = _default(objectives.SNRPlus())  # type: ignore[valid-type]
    uncertainty: bool = False
    augment: Annotated[float, Field(ge=0, le=1)] = 0.0


class Loss(Section):
    """How f_θ(x_t) is compared with its target."""

    distance: one_of(objectives.Distance) = _default(objectives.Huber())  # type: ignore[valid-type]
    weight: one_of(objectives.Weight) = _default(objectives.InverseGap())  # type: ignore[valid-type]
    steps: Annotated[int, Field(ge=1)] = 1
    method: Literal["euler", "heun"] = "euler"


class ConsistencyRecipe(Common):
    """Tuning: a consistency model."""

    objective: Literal["consistency"]
    pairs: one_of(times.TimePairs)  # type: ignore[valid-type]
    estimator: one_of(estimators.NoiseEstimator)  # type: ignore[valid-type]
    loss: Loss = Loss()
    target: one_of(ema.Target) = _default(ema.Online())  # type: ignore[valid-type]
    mid_t: tuple[Annotated[float, Field(gt=0)], ...] = (0.821,)


Recipe = DiffusionRecipe | ConsistencyRecipe


def build(section: Section, where: str, *, words: Any = None, context: Any = None, **wired: Any) -> Any:
    """The object a section describes. `wired` are the arguments that the rest of the recipe decides."""
    given: dict[str, Any] = {}
    accepted = _arguments(section.builds)
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name not in accepted:  # what kind it is, or what the words of other arguments need to know
            continue
        if isinstance(value, Section):
            value = build(value, f"{where}.{name}", words=words, context=context, **wired)
        elif isinstance(value, tuple):
            value = tuple(
                build(item, f"{where}.{name}", **wired) if isinstance(item, Section) else item
                for item in value
            )
        if words and name in words:
            value = words[name](value, section=section, **context)
        given[name] = value
    given |= {name: value for name, value in wired.items() if name in accepted}
    try:
        return section.builds(**given)
    except ValueError as error:
        raise UserError(str(error), where) from error


def _arguments(cls: Any) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters)
