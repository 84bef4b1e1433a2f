"""Errors that the user can mend, and code of other packages, whose errors become such."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def printable(text: str) -> str:
    """A text from a file without the characters that a terminal would act on: they are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: object, known: Iterable[str]) -> str:
    """ "did you mean NAME? " for the nearest of the known names, "" where none is near."""
    found = get_close_matches(str(word), list(known), n=1)
    return f"did you mean {found[0]}? " if found else ""


class UserError(Exception):
    """Input that cannot be used: shown as one printable line, `where: what; remedy`, and exit status 2.

    Args:
        what: what is wrong, naming the value that was given.
        where: the file, key or option in which it stands.
        remedy: what to write instead.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        line = f"{where}: {what}" if where else what
        super().__init__(printable(" ".join((f"{line}; {remedy}" if remedy else line).split())))


class RunFailed(RuntimeError):
    """What went wrong at run time, and what to do: its message is shown as one line, with exit status 1."""


def load_entry_point(entry: "EntryPoint") -> Any:
    """The object that an installed package declares.

    Raises UserError, naming the entry point, where the package's import fails.
    """
    try:
        return entry.load()
    except Exception as error:  # whatever another package's import does
        raise UserError(
            str(error), f"entry point {entry.name} = {entry.value}", "mend or uninstall that package"
        ) from error
