"""The interface through which a long job shows its progress."""

from contextlib import AbstractContextManager
from typing import Protocol


class Bar(Protocol):
    def advance(self, amount: int, note: str | None = None) -> None: ...


class Screen(Protocol):
    """Lines of text, and bars below them."""

    def say(self, text: str) -> None: ...

    def bar(self, description: str, total: int, done: int = 0) -> AbstractContextManager[Bar]: ...
