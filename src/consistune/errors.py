"""Errors that the user can mend, and code of other packages, whose errors become such."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class UserError(Exception):
    """Input that cannot be used: shown as one line, `where: what; remedy`, and exit status 2.

    Args:
        what: what is wrong, naming the value that was given.
        where: the file, key or option in which it stands.
        remedy: what to write instead.
    """

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        line = f"{where}: {what}" if where else what
        super().__init__(" ".join(f"{line}; {remedy}".split()) if remedy else " ".join(line.split()))


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
