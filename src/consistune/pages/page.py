"""The page kit: a report is a template in `templates/`, filled with plain values, in one file without links.

Jinja2 escapes every value that a template prints; a name that the context lacks is an error. Only
`inline_svg` passes markup through.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from consistune.pages.plots import Figure

MISSING = "–"
"""The text of a table cell without a value."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and paler remarks after it. Words are aligned left, numbers right."""

    text: str
    remarks: Sequence[str] = ()
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table: one heading a column, then rows of as many cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """A PNG and the caption below it."""

    caption: str
    png: bytes


def counted(number: int, noun: str) -> str:
    """ "1 evaluation", "2 evaluations"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def render(template: str, **context: Any) -> str:
    """The page that `template` (a file name in `templates/`) makes of the context, as HTML.

    Raises jinja2.UndefinedError where the template needs a name that the context lacks.
    """
    return _environment().get_template(template).render(context)


def inline_svg(figure: Figure) -> Markup:
    """The figure as an SVG element for a page, exempt from escaping.

    This is safe: matplotlib writes the element and escapes every text in it. Never wrap any other text so.
    """
    return Markup(figure.svg())


def data_uri(png: bytes) -> str:
    """A PNG as the source of an <img>, so that the page needs no second file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("consistune.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format, "data_uri": data_uri, "inline_svg": inline_svg}
    return environment
