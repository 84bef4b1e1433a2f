"""From a YAML file to a recipe, and from a mistake to one line that names the key and what is allowed."""

import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from consistune.core.objectives import Objective
from consistune.errors import UserError, nearest
from consistune.recipe.ranges import check_numbers
from consistune.recipe.words import PARTS, Recipe, Section, recipe_reader, recipe_section, section
from consistune.recipe.yaml_text import parse_value, parse_yaml, read_text, shortened

SHIPPED = Path(__file__).parents[1] / "recipes"
DEEPEST_EXTENDS = 20


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """A file, or the name of a recipe that comes with the package."""
    for path in (Path(name), SHIPPED / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(shipped_recipes())
    hint = nearest(Path(name).stem, shipped_recipes())
    raise UserError(f"no such recipe: {name!r}", "RECIPE", f"{hint}give a YAML file or one of: {known}")


def read_recipe(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """A recipe with `key=value` overrides (dotted keys, YAML values), validated."""
    path = recipe_path(name)
    data = _read_mapping(path, ())
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            what = f"{override!r} is not an override"
            raise UserError(what, "key=value", "write for example train.images=1000")
        assign(data, key.split("."), parse_value(value, key), override)
        if key.endswith(".kind"):
            _check_keys_of_kind(data, key, override)
    return validate(data, str(path))


def _read_mapping(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """A file's keys over those of the recipe that it `extends`: a file beside it, or one of the package."""
    if path.resolve() in below:
        raise UserError("a recipe cannot extend itself", f"{path}: extends")
    if len(below) == DEEPEST_EXTENDS:
        raise UserError(f"more than {DEEPEST_EXTENDS} recipes extend each other", f"{path}: extends")
    data = parse_yaml(read_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of keys to values", str(path))
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"extends={base!r} is not allowed", str(path), "give one recipe's name or file")
    beside = path.parent / base
    found = beside if beside.is_file() else recipe_path(base)
    return _laid_over(_read_mapping(found, (*below, path.resolve())), data)


def _laid_over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Sections are joined key by key; one of another `kind` replaces the whole section, as values do."""
    joined = dict(base)
    for key, value in own.items():
        old = base.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        same = both and value.get("kind", old.get("kind")) == old.get("kind")  # type: ignore[union-attr]
        joined[key] = _laid_over(old, value) if same else value  # type: ignore[arg-type]
    return joined


def assign(data: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    """Set a key of nested sections. Raises UserError, beginning with `override`, for one below a value."""
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise UserError(f"{key!r} is a single value, it has no keys below it", override)
    data[keys[-1]] = value


def _check_keys_of_kind(data: dict[str, Any], key: str, override: str) -> None:
    """Raises UserError where KEY.kind=OTHER leaves keys in the section that the other kind does not have."""
    path = key.split(".")[:-1]
    part: Any = data
    for name in path:
        part = part[name]
    classes = [table[part["kind"]] for table in PARTS.values() if str(part["kind"]) in table]
    known = set().union(*(section(make, part["kind"]).model_fields for make in classes))
    left = [name for name in part if name not in known]
    if classes and left:
        place = ".".join(path)
        what = f"{place} has keys that kind {part['kind']} has not: {', '.join(map(str, left))}"
        remedy = f"write {place}={{kind: {part['kind']}}} with the keys of that kind: these fall away"
        raise UserError(what, override, remedy)


def validate(data: dict[str, Any], where: str = "recipe") -> Recipe:
    """Plain data → recipe. Raises UserError: one line naming the key and what is allowed."""
    try:
        # Through JSON, where a list may stand for a tuple without strictness being given up.
        recipe = recipe_reader().validate_json(json.dumps(data))
    except TypeError as error:
        raise UserError(str(error), where) from error
    except ValidationError as error:
        raise _explain(error, where) from error
    check_numbers(recipe, where)
    return recipe


OF_UNION = re.compile(r"(float|bool|int|str)$|literal\[|.*tagged-union")
"""What pydantic puts into an error's location for a type of a union; it is no key."""


def _explain(error: ValidationError, where: str) -> UserError:
    first = _telling(error.errors(include_url=False))
    location = [part for part in first["loc"] if not OF_UNION.match(str(part))]
    model, keys = _walk(location)
    name = ".".join(keys) or "the recipe"
    match first["type"]:
        case "extra_forbidden":
            known = sorted(model.model_fields) if model else []
            hint = nearest(first["loc"][-1], known)
            return UserError(f"unknown key {name}", where, f"{hint}allowed are: {', '.join(known)}")
        case "missing":
            return UserError(f"{name} is missing", where, "add it")
        case "union_tag_invalid" | "union_tag_not_found":
            key = first["ctx"]["discriminator"].strip("'")
            name = ".".join([*keys, key])
            given = first["ctx"].get("tag")
            tags = first["ctx"].get("expected_tags") or ", ".join(_tags(model, keys))
            what = f"{name} is missing" if given is None else f"{name}={shortened(given)} is unknown"
            hint = nearest(given, [tag.strip("' ") for tag in tags.split(",")])
            return UserError(what, where, f"{hint}allowed are: {tags}")
        case _:
            message = first["msg"][0].lower() + first["msg"][1:]
            return UserError(f"{name}={shortened(first['input'])} is not allowed", where, message)


def _telling(errors: list[Any]) -> Any:
    """The first error; of a number-or-section that is neither, the section's where a mapping was given."""
    inside = [e for e in errors if any("tagged-union" in str(part) for part in e["loc"])]
    return next((e for e in inside if e["type"] != "dict_type"), errors[0])


def _walk(location: list[str | int]) -> tuple[type[Section] | None, list[str]]:
    """Follow an error's location: the section it ends in, and the keys that a user would write.

    Pydantic puts the tag of a union between the keys; it picks the section and is not a key.
    """
    model: Any = None
    keys: list[str] = []
    choices: dict[str, Any] = {kind: recipe_section(kind) for kind in PARTS[Objective]}
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
        return list(PARTS[Objective])
    name = next(key for key in reversed(keys) if not key.isdigit())
    field = model.model_fields[name] if model else None
    return [found.model_fields["kind"].default for found in _sections(field and field.annotation)]


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)
