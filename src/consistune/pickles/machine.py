"""A reader for pickles that cannot execute anything: a stack machine with a short list of opcodes.

It is not Python's unpickler with some parts forbidden. It has no operation that imports a module, calls an
object or sets an attribute. A global is looked up in a table of known names, and a call of it runs this
package's own function for that name. Everything outside the tables is refused, with its name and byte offset.
Python's pickletools describes the opcodes.

It is written by hand because no library reads EDM's and EDM2's pickles without executing what they name.

Limits: the number of opcodes (and so the memory, about 100 bytes each); every length, by the bytes that the
file has; integers of at most 8 bytes; text of at most `MAX_TEXT` bytes (longer text is never decoded);
dictionary keys that are cheap to hash. Nothing recurses, so nested values cost nothing here. The code that
walks the result must limit the depth itself.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from consistune.errors import UserError

STOP = ord(".")
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
"""The name of every opcode that exists, for error messages."""
MAX_KEY = 1_000_000


@dataclass(slots=True, eq=False)
class Global:
    """A name in the file that the dialect knows. It stands for the object and does nothing."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class ByteRange:
    """Bytes of the file, or text too long to be data (embedded source code), that were not read."""

    start: int
    stop: int
    text: bool = False

    def __len__(self) -> int:
        return self.stop - self.start


Step: TypeAlias = Callable[["Machine"], None]
"""What an opcode does."""
Call: TypeAlias = Callable[["Machine", Any], Any]
"""What happens at REDUCE: (machine, argument tuple) → value."""
Build: TypeAlias = Callable[["Machine", Any, Any], None]
"""What happens at BUILD: (machine, object, its state)."""


def plain_key(m: "Machine", key: Any) -> str | int:
    """A dictionary's key: text, or an integer of 0 … 999,999. Raises UserError for any other."""
    if not (type(key) is str or (type(key) is int and 0 <= key < MAX_KEY)):
        raise m.refuse(f"a key of type {type(key).__name__}")
    return key


@dataclass(frozen=True)
class Dialect:
    """What one kind of pickle may contain. Everything else is refused.

    Attributes:
        globals: (module, name) → what REDUCE does with it, or None for a name that may not be called.
        description: what the files of this kind are, for error messages.
        max_opcodes: limits time and memory.
        opcodes: code → what it does.
        new: (module, name) of a class → what NEWOBJ makes, without arguments.
        build: type of an object → how it takes its state.
        key: checks a dictionary's key, and returns it as it is stored.
        min_protocol: the lowest pickle protocol.
    """

    globals: Mapping[tuple[str, str], Call | None]
    description: str
    max_opcodes: int
    opcodes: Mapping[int, Step]
    new: Mapping[tuple[str, str], Callable[[], Any]] = field(default_factory=dict)
    build: Mapping[type, Build] = field(default_factory=dict)
    key: Callable[["Machine", Any], str | int] = plain_key
    min_protocol: int = 2


class Machine:
    """Reads one pickle, once.

    Args:
        data: the bytes; results refer to them and do not copy.
        dialect: what is allowed.
        where: how to name the file in errors.
        persistent: (persistent id, where) → value; None refuses persistent ids.
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
        return UserError(f"{what} at byte {self.opcode_at}", self.where, f"not {self.dialect.description}")

    @property
    def location(self) -> str:
        """The file and the offset of the current opcode, for error messages."""
        return f"{self.where}, byte {self.opcode_at}"

    def run(self) -> Any:
        """The object that the pickle describes. Raises UserError for everything that the dialect lacks."""
        if self.dialect.min_protocol >= 2 and bytes(self.data[:1]) != b"\x80":
            raise self.refuse("no pickle of protocol 2 or later begins")
        opcodes = self.dialect.opcodes
        for _ in range(self.dialect.max_opcodes):
            self.opcode_at = self.position
            if self.position >= len(self.data):
                raise self.refuse("the file is cut off")
            code = self.data[self.position]
            self.position += 1
            if code == STOP:
                return self._result()
            step = opcodes.get(code)
            if step is None:
                raise self.refuse(f"opcode {NAMES.get(code, hex(code))} is not allowed")
            step(self)
        raise self.refuse(f"more than {self.dialect.max_opcodes} opcodes")

    def _result(self) -> Any:
        value = self.pop()
        if self.stack or self.marked:
            raise self.refuse("the pickle ends with values left over")
        if self.position != len(self.data):
            raise self.refuse(f"{len(self.data) - self.position} bytes follow the end of the pickle")
        return value

    # --- reading ---------------------------------------------------------------------------------------

    def skip(self, count: int) -> ByteRange:
        """Move over the next `count` bytes. Raises UserError where the file ends before."""
        start = self.position
        if count > len(self.data) - start:
            raise self.refuse(f"the file is cut off: {count} bytes announced, {len(self.data) - start} left,")
        self.position = start + count
        return ByteRange(start, self.position)

    def bytes_of(self, value: ByteRange, limit: int | None = None) -> bytes:
        """A copy of the bytes of a range, or of the first `limit` of them."""
        return bytes(self.data[value.start : value.stop][:limit])

    def number(self, size: int, signed: bool = False) -> int:
        """The next `size` bytes as a little-endian integer."""
        return int.from_bytes(self.bytes_of(self.skip(size)), "little", signed=signed)

    def line(self, limit: int = 256) -> bytes:
        """The bytes before the next newline. The search grows in steps, so its cost is the line's length."""
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

    def count_copy(self, size: int) -> None:
        """Count `size` bytes that are about to be copied. All copies together may not exceed the file."""
        self.copied += size
        if self.copied > len(self.data):
            raise self.refuse("values larger than the file")

    # --- the stack -------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def require(self, count: int) -> None:
        """Raises UserError where fewer than `count` values are on the stack."""
        if len(self.stack) < count:
            raise self.refuse("a value is missing from the stack")

    def pop(self) -> Any:
        self.require(1)
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """The values after the last mark; the mark is removed too."""
        if not self.marked:
            raise self.refuse("a mark is missing from the stack")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def top(self, kind: type | None = None) -> Any:
        """The value on top of the stack, which stays there. Raises UserError unless it is of type `kind`."""
        self.require(1)
        if kind is not None and type(self.stack[-1]) is not kind:
            raise self.refuse(f"a {kind.__name__} is missing from the stack")
        return self.stack[-1]

    def recall(self, index: int) -> None:
        """Push the memo's value of that index."""
        if index not in self.memo:
            raise self.refuse(f"memo {index} is not there")
        self.push(self.memo[index])
