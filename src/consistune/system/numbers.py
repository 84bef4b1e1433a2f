"""What counts as a number in a file or an option."""

from typing import TypeGuard


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether the value is an int or a float; a bool is not one."""
    return isinstance(value, int | float) and not isinstance(value, bool)
