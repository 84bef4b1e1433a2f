"""Recipes: the only place where a word in a file becomes an object.

A recipe is YAML. Each part of the method is a section with a `kind`; PARTS says which class a kind is, and
the section's other keys are that class's arguments, checked strictly. Adding an estimator, a gap, a
distance or a network is its own file and one line here.
"""

import inspect
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from sct.core import estimators, noise, objectives, times
from sct.errors import UserError
from sct.nn import store
from sct.nn.precond import EDMPrecond, Preconditioned
from sct.train import ema, optim
from sct.train.options import TrainOptions

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
    (estimators.Teacher, "model"): (str, ...),
    (times.Phased, "edges"): (tuple[float, ...] | Annotated[int, Field(ge=1)], ...),
}
"""Arguments that a recipe names by a word, with that word's type and default."""

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
    """What both objectives share."""

    data: str = "digits"
    conditional: bool = True
    network: one_of(store.Network) | None = None  # type: ignore[valid-type]
    start_from: str | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    precond: one_of(Preconditioned) = section(EDMPrecond, "edm")()  # type: ignore[valid-type]
    schedule: one_of(noise.NoiseSchedule) = section(noise.EDM, "edm")()  # type: ignore[valid-type]
    optimizer: section(optim.Optimizer) = section(optim.Optimizer)()  # type: ignore[valid-type]
    train: section(TrainOptions)  # type: ignore[valid-type]


class DiffusionRecipe(Common):
    """Pretraining: a denoiser."""

    objective: Literal["diffusion"]
    law: one_of(times.LogNormal) = _default(times.LogNormal(-1.2, 1.2))  # type: ignore[valid-type]
    weight: one_of(objectives.Weight) = _default(objectives.SNRPlus())  # type: ignore[valid-type]


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
_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="objective")])


# --- from a file to a recipe -------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (1e-4 is one; YAML 1.1 reads a string), and no key twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
    return cast(dict[str, Any], loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML. Raises UserError with the line of a mistake."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or error}", place) from error


def recipe_path(name: str) -> Path:
    """A file, or the name of a recipe that comes with the package."""
    shipped = Path(__file__).parent / "recipes"
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in shipped.glob("*.yaml")))
    raise UserError(f"no such recipe: {name!r}", "RECIPE", f"give a YAML file or one of: {known}")


def read_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe with `key=value` overrides (dotted keys, YAML values), validated."""
    path = recipe_path(name)
    data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of keys to values", str(path))
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(
                f"{override!r} is not an override", "key=value", "write for example train.images=1000"
            )
        _assign(data, key.split("."), parse_yaml(value, key), override)
    return validate(data, str(path))


def _assign(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise UserError(f"{key!r} is a single value, it has no keys below it", override)
    data[keys[-1]] = value


def validate(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Plain data → recipe. Raises UserError: one line naming the key and what is allowed."""
    try:
        # Through JSON, where a list may stand for a tuple without strictness being given up.
        return _ADAPTER.validate_json(json.dumps(data))
    except TypeError as error:
        raise UserError(str(error), where) from error
    except ValidationError as error:
        raise _explain(error, where) from error


def _explain(error: ValidationError, where: str) -> UserError:
    first = _telling(error.errors(include_url=False))
    location = [part for part in first["loc"] if str(part) != "float" and "tagged-union" not in str(part)]
    model, keys = _walk(location)
    name = ".".join(keys) or "the recipe"
    match first["type"]:
        case "extra_forbidden":
            allowed = ", ".join(sorted(model.model_fields)) if model else ""
            return UserError(f"unknown key {name}", where, f"allowed are: {allowed}")
        case "missing":
            return UserError(f"{name} is missing", where, "add it")
        case "union_tag_invalid" | "union_tag_not_found":
            key = first["ctx"]["discriminator"].strip("'")
            name = ".".join([*keys, key])
            given = first["ctx"].get("tag")
            tags = first["ctx"].get("expected_tags") or ", ".join(_tags(model, keys))
            what = f"{name} is missing" if given is None else f"{name}={given!r} is unknown"
            return UserError(what, where, f"allowed are: {tags}")
        case _:
            message = first["msg"][0].lower() + first["msg"][1:]
            return UserError(f"{name}={first['input']!r} is not allowed", where, message)


def _telling(errors: list[Any]) -> Any:
    """The first error; of a number-or-section that is neither, the section's where a mapping was given."""
    inside = [e for e in errors if any("tagged-union" in str(part) for part in e["loc"])]
    return next((e for e in inside if e["type"] != "dict_type"), errors[0])


def _walk(location: list[str | int]) -> tuple[type[Section] | None, list[str]]:
    """Follow an error's location: the section it ends in, and the keys that a user would write.

    Pydantic puts the tag of a union between the keys; it picks the section and is not a key.
    """
    tops = {"diffusion": DiffusionRecipe, "consistency": ConsistencyRecipe}
    model: Any = None
    keys: list[str] = []
    choices: dict[str, Any] = dict(tops)
    for part in location:
        if isinstance(part, int):
            keys.append(str(part))
            continue
        if choices:
            model, choices = choices.get(part), {}
            continue
        keys.append(part)
        field = model.model_fields.get(part) if model is not None else None
        if field is None:
            continue
        sections = _sections(field.annotation)
        if len(sections) > 1:
            choices = {s.model_fields["kind"].default: s for s in sections}
        elif sections:
            model = sections[0]
    return model, keys


def _sections(hint: Any) -> list[type[Section]]:
    """The sections that a type speaks of, however deep."""
    if inspect.isclass(hint) and issubclass(hint, Section):
        return [hint]
    return list(dict.fromkeys(found for inner in get_args(hint) for found in _sections(inner)))


def _tags(model: type[Section] | None, keys: list[str]) -> list[str]:
    if not keys:
        return ["diffusion", "consistency"]
    name = next(key for key in reversed(keys) if not key.isdigit())
    field = model.model_fields[name] if model else None
    return [found.model_fields["kind"].default for found in _sections(field and field.annotation)]


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)
