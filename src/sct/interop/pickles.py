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
from typing import Any

from sct.errors import UserError
from sct.interop.opcodes import NAMES, OPCODES, STOP

MAX_OPCODES = 250_000
"""CIFAR-10's DDPM++ takes 37 000; ImageNet-64's ADM, the longest that is published, about 60 000."""

Call = Callable[["Machine", Any], Any]
"""What happens at REDUCE: (machine, argument tuple) → value."""


class Machine:
    """One reading of one pickle.

    Args:
        data: the bytes; results refer to them and do not copy.
        table: (module, name) → what REDUCE does with it, or None for a name that is never called.
        where: how to name the file in errors.
        persistent: what to do with a persistent id; None refuses them.
    """

    def __init__(
        self,
        data: memoryview,
        table: Mapping[tuple[str, str], Call | None],
        where: str,
        persistent: Callable[[Any, str], Any] | None = None,
    ) -> None:
        self.data, self.table, self.where, self.persistent = data, table, where, persistent
        self.position = self.opcode_at = 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def refuse(self, what: str) -> UserError:
        return UserError(f"{what} at byte {self.opcode_at}", self.where, "not a checkpoint that sct reads")

    @property
    def place(self) -> str:
        return f"{self.where}, byte {self.opcode_at}"

    def run(self) -> Any:
        """The object that the pickle describes. Raises UserError for anything not on the list."""
        if bytes(self.data[:1]) != b"\x80":
            raise self.refuse("no pickle of protocol 2 or later begins")
        for _ in range(MAX_OPCODES):
            self.opcode_at = self.position
            if self.position >= len(self.data):
                raise self.refuse("the file is cut off")
            code = self.data[self.position]
            self.position += 1
            if code == STOP:
                return self.finish()
            step = OPCODES.get(code)
            if step is None:
                raise self.refuse(f"opcode {NAMES.get(code, hex(code))} is not allowed")
            step(self)
        raise self.refuse(f"more than {MAX_OPCODES} opcodes")

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

    def line(self) -> str:
        start = self.position
        text = bytes(self.data[start : start + 256])
        end = text.find(b"\n")
        if end < 0:
            raise self.refuse("a name without an end")
        self.position += end + 1
        return text[:end].decode("ascii", "backslashreplace")

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
