"""What is defined once more under its own name, as when a notebook's cell is run again."""

from typing import Any


def is_again(new: Any, old: Any) -> bool:
    """Whether both are the same, or classes or functions of the same module and qualified name."""
    names = [(getattr(o, "__module__", None), getattr(o, "__qualname__", None)) for o in (new, old)]
    return new == old or (names[0] == names[1] and None not in names[0])
