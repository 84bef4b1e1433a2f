"""From a section of a recipe to the object that it describes."""

import inspect
from typing import Any

from sct.errors import UserError
from sct.recipe.parts import Section


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
