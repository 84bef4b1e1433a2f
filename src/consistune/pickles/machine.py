"""A reader for pickles that cannot execute anything: a stack machine over a short list of opcodes.

It is not Python's unpickler with parts forbidden. It has no operation that imports, calls or sets an
attribute: a global is looked up in a table of markers, and "calling" one runs the reader's own function for
that marker. What is not in the tables is refused with its name and byte offset. The opcodes are
described in Python's pickletools.

Bounds: the number of opcodes (and with it memory, about 100 bytes each), every length against the bytes that
are there, integers of at most 8 bytes, text only as long as names are (longer text is never decoded), plain
keys (so that no key is costly to hash). Nothing recurses, so nesting costs nothing here; whoever walks the
result must bound the depth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from consistune.errors import UserError
from consistune.pickles.opcodes import NAMES, OPCODES, STOP, Step, plain_key

Call = Callable[["Machine", Any], Any]
"""What happens at REDUCE: (machine, argument tuple) → value."""
Build = Callable[["Machine", Any, Any], None]
"""What happens at BUILD: (machine, object, its state)."""


@dataclass(frozen=True)
class Dialect:
    """What one kind of pickle may say; everything else is refused.

    Attributes:
        globals: (module, name) → what REDUCE does with it, or None for a name that is never called.
        what: how a refusal calls the files of this kind.
        opcodes: by code.
        new: what NEWOBJ makes of a class, without arguments.
        build: by the type of the object that takes a state.
        key: a dictionary's key, as it is stored; refuses what none may be.
        oldest: the lowest protocol.
        max_opcodes: bounds time and memory.
    """

    globals: Mapping[tuple[str, str], Call | None]
    what: str
    max_opcodes: int
    opcodes: Mapping[int, Step] = field(default_factory=lambda: OPCODES)
    new: Mapping[tuple[str, str], Callable[[], Any]] = field(default_factory=dict)
    build: Mapping[type, Build] = field(default_factory=dict)
    key: Callable[["Machine", Any], str | int] = plain_key
    oldest: int = 2


class Machine:
    """One reading of one pickle.

    Args:
        data: the bytes; results refer to them and do not copy.
        dialect: what is allowed.
        where: how to name the file in errors.
        persistent: what to do with a persistent id; None refuses them.
    """

    def __init__(
        self,
        data: memoryview,
        dialect: Dialect,
        where: str,
        persistent: Callable[[Any, str], Any] | None = None,
    ) -> None:
        self.data, self.dialect, self.where, self.persistent = data, dialect, where, persistent
        self.position = self.opcode_at = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def refuse(self, what: str) -> UserError:
        return UserError(f"{what} at byte {self.opcode_at}", self.where, f"not {self.dialect.what}")

    @property
    def place(self) -> str:
        return f"{self.where}, byte {self.opcode_at}"

    def run(self) -> Any:
        """The object that the pickle describes. Raises UserError for anything not on the list."""
        if self.dialect.oldest >= 2 and bytes(self.data[:1]) != b"\x80":
            raise self.refuse("no pickle of protocol 2 or later begins")
        opcodes = self.dialect.opcodes
        for _ in range(self.dialect.max_opcodes):
            self.opcode_at = self.position
            if self.position >= len(self.data):
                raise self.refuse("the file is cut off")
            code = self.data[self.position]
            self.position += 1
            if code == STOP:
                return self.finish()
            step = opcodes.get(code)
            if step is None:
                raise self.refuse(f"opcode {NAMES.get(code, hex(code))} is not allowed")
            step(self)
        raise self.refuse(f"more than {self.dialect.max_opcodes} opcodes")

    def finish(self) -> Any:
        value = self.pop()
        if self.stack or self.marked:
            raise self.refuse("the pickle ends with values left over")
        if self.position != len(self.data):
            raise self.refuse(f"{len(self.data) - self.position} bytes follow the end of the pickle")
        return value

    # --- reading ---------------------------------------------------------------------------------------

    def take(self, count: int) -> int:
        """Step over `count` bytes; their start. Raises UserError where the file ends before."""
        start = self.position
        if count > len(self.data) - start:
            raise self.refuse(f"the file is cut off: {count} bytes announced, {len(self.data) - start} left,")
        self.position = start + count
        return start

    def number(self, size: int, signed: bool = False) -> int:
        start = self.take(size)
        return int.from_bytes(self.data[start : start + size], "little", signed=signed)

    def line(self, limit: int = 256) -> bytes:
        """What stands before the next newline, looked for in growing steps: a line costs its length."""
        start, size = self.position, 256
        while True:
            text = bytes(self.data[start : start + size])
            end = text.find(b"\n")
            if end >= 0:
                self.position += end + 1
                return text[:end]
            if len(text) < size or size >= limit:
                raise self.refuse("a line without an end")
            size *= 8

    def copying(self, count: int) -> None:
        """Account for `count` bytes about to be copied: all copies together are no larger than the file."""
        self.copied += count
        if self.copied > len(self.data):
            raise self.refuse("values larger than the file")

    # --- the stack -------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise self.refuse("a value is missing from the stack")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marked:
            raise self.refuse("a mark is missing from the stack")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            raise self.refuse(f"a {kind.__name__} is missing from the stack")
        return self.stack[-1]
