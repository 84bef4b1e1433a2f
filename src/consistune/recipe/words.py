"""What a recipe's words mean: the only place where a word in a file becomes an object.

A recipe is YAML. Each part of the method is a section with a `kind`; PARTS says which class a kind is, and
the section's other keys are that class's arguments, checked strictly. The objective's keys stand at the top
of the recipe. Adding a part is its own file and one line here, or a call of `register` from outside.
"""

import inspect
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model

from consistune.core import estimators, intervals, laws, noise, objectives, times
from consistune.core.posterior.bank import BankKind
from consistune.errors import UserError, load_entry_point
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import objectives as built_objectives
from consistune.system.again import is_again
from consistune.training import ema, optim
from consistune.training.options import TrainOptions
from consistune.training.precision import UntilRatio

PARTS: dict[Any, dict[str, Any]] = {
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
    laws.LogNormal: {"lognormal": laws.LogNormal},
    laws.TimeLaw: {"lognormal": laws.LogNormal, "log-student": laws.LogStudent},
    intervals.Intervals: {"logit-normal": intervals.LogitNormal},
    estimators.NoiseEstimator: {
        "one-sample": estimators.OneSample,
        "score-identity": estimators.ScoreIdentity,
        "teacher": estimators.Teacher,
        "blend": estimators.Blend,
    },
    objectives.Distance: {
        "huber": objectives.Huber,
        "adaptive-huber": objectives.AdaptiveHuber,
        "squared-l2": objectives.SquaredL2,
        "l1": objectives.L1,
        "lpips": objectives.LPIPS,
    },
    objectives.Weight: {
        "inverse-gap": objectives.InverseGap,
        "snr-plus": objectives.SNRPlus,
        "inverse-c-out": objectives.InverseCOut,
        "uniform": objectives.Uniform,
    },
    objectives.Scale: {"adaptive-power": objectives.AdaptivePower},
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
    objectives.Objective: {
        "diffusion": built_objectives.diffusion,
        "consistency": built_objectives.consistency,
        "truncated": built_objectives.truncated,
        "trajectory": built_objectives.trajectory,
        "continuous": built_objectives.continuous,
        "mean-velocity": built_objectives.mean_velocity,
    },
    store.Network: store.NETWORKS,
    Preconditioned: store.PRECONDITIONERS,
}

NAMES = {
    "schedule": noise.NoiseSchedule,
    "pairs": times.TimePairs,
    "gap": times.Gap,
    "grid-size": times.GridSize,
    "law": laws.LogNormal,
    "time-law": laws.TimeLaw,
    "intervals": intervals.Intervals,
    "estimator": estimators.NoiseEstimator,
    "distance": objectives.Distance,
    "weight": objectives.Weight,
    "scale": objectives.Scale,
    "rate-schedule": optim.RateSchedule,
    "average": ema.Average,
    "target": ema.Target,
    "objective": objectives.Objective,
    "network": store.Network,
    "precond": Preconditioned,
}
"""What `register` calls the parts."""
SINGLE = (
    optim.Optimizer,
    TrainOptions,
    UntilRatio,
    built_objectives.Loss,
    objectives.Mixture,
    times.TruncatedPairs,
)
"""Classes of which there is one kind: their sections have no `kind`."""

WORDS: dict[tuple[Any, str], tuple[Any, Any]] = {
    (estimators.ScoreIdentity, "reference"): (Literal["batch", "class", "all"], ...),
    (estimators.ScoreIdentity, "bank"): (BankKind, "auto"),
    (estimators.Teacher, "model"): (str, ...),
    (built_objectives.truncated, "below"): (str, ...),
    (objectives.LPIPS, "weights"): (str, ...),
    (times.Phased, "edges"): (tuple[float, ...] | Annotated[int, Field(ge=1)], ...),
}
"""Arguments that a recipe names by a word, with that word's type and default; `bank` says where the
reference lives."""

WIRED = {"schedule", "image_shape", "num_classes", "network", "mirrored", "student"}
"""Arguments that the rest of the recipe decides: `mirrored` follows train.x_flip, `student` is the model."""
PYTHON_ONLY = {"bandwidth", "nearest"}
"""Arguments for continuous conditions. No data set of a recipe has such; in Python a `Batch` may."""


def register(part: str, kind: str, make: Callable[..., Any]) -> None:
    """Let recipes say `kind` for a part; its other keys are the arguments of `make`, by their type hints.

    part: one of NAMES. make: a class or, for an objective, also a function that is annotated to return one.
    A network also needs the attributes that `nn.precond.Preconditioned` names, so that it can be stored.
    The same is done for every entry point of the group `consistune.parts` whose name is "part:kind".
    A class that is defined again, in a notebook's cell for example, takes the place of its old self.
    Raises ValueError for an unknown part, for a kind that is another class already, and for a class whose
    arguments no recipe could give.
    """
    if part not in NAMES:
        raise ValueError(f"unknown part {part!r}: known are {', '.join(NAMES)}")
    table = PARTS[NAMES[part]]
    before = table.copy()
    if not is_again(make, before.get(kind, make)):
        raise ValueError(f"{part}: {kind!r} is already {table[kind].__name__}")
    table[kind] = make
    _forget()
    try:
        _check_readable(part, kind)
    except Exception as error:  # whatever the hints of a class, or what is no class, may raise
        table.clear()
        table.update(before)
        _forget()
        name, reason = getattr(make, "__name__", repr(make)), str(error).split("\n")[0]
        raise ValueError(f"{part}: {name} cannot be read from a recipe: {reason}") from error


def _forget() -> None:
    """Build anew what depends on the table of parts."""
    for built in (section, one_of, recipe_section, recipe_reader):
        built.cache_clear()


def _check_readable(part: str, kind: str) -> None:
    """Raises what the reading of every recipe would raise for a kind of the table."""
    for name, field in _keys(PARTS[NAMES[part]][kind]).items():
        try:
            create_model(name, __base__=Section, **{name: field})
        except Exception as error:
            raise TypeError(f"its argument {name!r}: {error}") from error
    if part == "objective":
        recipe_section(kind)
    else:
        TypeAdapter(one_of(NAMES[part]))


@cache
def load_entry_points() -> None:
    """Register the parts of installed packages, once. Raises UserError for one that cannot be loaded."""
    for entry in entry_points(group=store.ENTRY_POINTS):
        part, _, kind = entry.name.partition(":")
        make = load_entry_point(entry)
        try:
            register(part, kind, make)
        except ValueError as error:  # the part is unknown, or the kind is taken
            raise UserError(str(error), f"entry point {entry.name} = {entry.value}") from error


class Section(BaseModel):
    """A part of a recipe; `builds` is the class or function whose arguments are its keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    builds: ClassVar[Any] = None


class Recipe(Section):
    """The keys that every recipe has; `recipe_section` adds those of its objective.

    `dropout` and `dropout_res` (EDM2's networks: the finest resolution at which blocks drop out) change the
    model that is made or started from, and are stored with it. `precond` puts its network into another form;
    None: EDM's for a new network, its own for weights that are started from.
    """

    data: str = "digits"
    conditional: bool = True
    network: Annotated[Any, store.Network | None] = None
    start_from: str | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    dropout_res: Annotated[int, Field(ge=1)] | None = None
    precond: Annotated[Any, Preconditioned | None] = None
    schedule: Annotated[Any, noise.NoiseSchedule] = noise.EDM()
    optimizer: Annotated[Any, optim.Optimizer] = optim.Optimizer()
    train: Annotated[Any, TrainOptions]
    objective: str

    if TYPE_CHECKING:  # the keys of the objective

        def __getattr__(self, name: str) -> Any: ...


def objective_word(kind: type[objectives.Objective]) -> str:
    """A recipe's word for an objective's class or for what it derives from; else the class's name."""
    words = {
        built_objectives.objective_class(make): word for word, make in PARTS[objectives.Objective].items()
    }
    return next((words[base] for base in kind.__mro__ if base in words), kind.__name__)


@cache
def section(make: Any, kind: str | None = None) -> type[Section]:
    """The strict model of a class's arguments (and of its kind, where it is one of several)."""
    fields: dict[str, Any] = {} if kind is None else {"kind": (Literal[kind], kind)}
    return _model(kind or make.__name__, Section, make, fields | _keys(make))


@cache
def recipe_section(kind: str) -> type[Recipe]:
    """The strict model of the recipes of an objective."""
    make = PARTS[objectives.Objective][kind]
    hints = get_type_hints(Recipe, include_extras=True)
    fields: dict[str, Any] = {}
    for name, field in Recipe.model_fields.items():
        hint = hints[name]
        if get_origin(hint) is Annotated and get_args(hint)[0] is Any:
            default = ... if field.is_required() else _default(field.default)
            fields[name] = (_in_sections(get_args(hint)[1]), default)
    fields |= {"objective": (Literal[kind], ...)} | _keys(make)
    more = built_objectives.further_keys(make).items()
    fields |= {name: (_in_sections(hint), _default(default)) for name, (hint, default) in more}
    return cast(type[Recipe], _model(kind, Recipe, make, fields))


@cache
def recipe_reader() -> TypeAdapter[Recipe]:
    """What validates a recipe of any objective."""
    load_entry_points()
    recipes = tuple(recipe_section(kind) for kind in PARTS[objectives.Objective])
    union: Any = Annotated[Union[recipes], Field(discriminator="objective")]  # noqa: UP007
    return TypeAdapter(union)


def _model(name: str, base: type[Section], make: Any, fields: dict[str, Any]) -> type[Section]:
    made = cast(type[Section], create_model(name, __base__=base, **fields))
    made.builds = make
    return made


def _keys(make: Any) -> dict[str, Any]:
    """name → (type, default) of the arguments that a recipe gives, and of the further keys in WORDS."""
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(make).parameters.items():
        if (make, name) in WORDS:
            fields[name] = WORDS[make, name]
        elif name not in WIRED | PYTHON_ONLY:
            if name not in hints:
                raise TypeError(f"its argument {name!r} has no type hint")
            default = ... if parameter.default is parameter.empty else _default(parameter.default)
            fields[name] = (_in_sections(hints[name], inside=make), default)
    return fields | {
        name: word for (owner, name), word in WORDS.items() if owner is make and name not in fields
    }


def _in_sections(hint: Any, inside: Any = None) -> Any:
    """A type in which every part has become the union of its sections: also in `tuple[float | Part, ...]`."""
    if get_origin(hint) is Annotated:
        return hint
    if hint in SINGLE:
        return section(hint, None)  # with the arguments of `_default`: one class for both
    if hint in PARTS:
        return one_of(hint, inside=inside)
    arguments = tuple(_in_sections(argument, inside) for argument in get_args(hint))
    if arguments == get_args(hint):
        return hint
    return Union[arguments] if get_origin(hint) in (Union, UnionType) else get_origin(hint)[arguments]  # noqa: UP007


@cache
def one_of(part: Any, inside: Any = None) -> Any:
    """The union, told apart by `kind`, of all sections of a part; a kind does not hold another of itself."""
    sections = [section(make, kind) for kind, make in PARTS[part].items() if make is not inside]
    if len(sections) == 1:
        return sections[0]
    return Annotated[Union[tuple(sections)], Field(discriminator="kind")]  # noqa: UP007 - built at run time


def _default(value: Any) -> Any:
    """A default that is itself a part becomes its section."""
    own_kind: dict[Any, Any] = {None: type(value)} if type(value) in SINGLE else {}
    tables: list[dict[Any, Any]] = [*PARTS.values(), own_kind]
    for table in tables:
        for kind, make in table.items():
            if type(value) is make:
                made = section(cast(Any, make), kind)
                own = {n: _default(getattr(value, n)) for n in made.model_fields if n != "kind"}
                return made.model_construct(**({} if kind is None else {"kind": kind}), **own)
    return value


def build(part: Section, where: str, *, words: Any = None, context: Any = None, **wired: Any) -> Any:
    """The object that a section describes.

    Args:
        where: the section's key, for messages; "" for a recipe.
        words: argument → function that turns the recipe's word for it into the object, called as
            function(word, section=…, key=…, **context).
        wired: the arguments that the rest of the recipe decides.
    """
    make = type(part).builds  # through the class, where a function is not a method
    accepted = inspect.signature(make).parameters

    def made(value: Any, key: str) -> Any:
        if isinstance(value, Section):
            return build(value, key, words=words, context=context, **wired)
        return tuple(made(item, key) for item in value) if isinstance(value, tuple) else value

    given: dict[str, Any] = {}
    # The other fields are the kind, the keys of all recipes, and what `words` read.
    for name in [name for name in type(part).model_fields if name in accepted and name not in wired]:
        key = f"{where}.{name}".lstrip(".")
        value = made(getattr(part, name), key)
        if words and name in words:
            value = words[name](value, section=part, key=key, **context)
        given[name] = value
    given |= {name: value for name, value in wired.items() if name in accepted}
    try:
        return make(**given)
    except ValueError as error:
        raise UserError(str(error), where or "objective") from error
