"""A reader for pickles that cannot execute anything: a stack machine over a short list of opcodes.

It is not Python's unpickler with parts forbidden. It has no operation that imports, calls or sets an
attribute: a global is looked up in a table of markers, and "calling" one runs the reader's own function for
that marker. What is not in the tables is refused with its name and byte offset. The format is described in
../shared/spec/edm-pickles.md; opcodes in Python's pickletools.

Bounds: the number of opcodes (and with it memory, about 100 bytes each), every length against the bytes that
are there, integers of at most 8 bytes, text only as long as names are (longer text is never decoded), plain
keys (so that no key is costly to hash). Nothing recurses, so nesting costs nothing here; whoever walks the
result must bound the depth.
"""

import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

from sct.errors import UserError
from sct.interop.inert import Blob, Global, ModuleDict, NumpyArray, NumpyDtype

MAX_OPCODES = 250_000
"""ImageNet-64's ADM network, the longest stream known, takes about 65 000."""
MAX_TEXT = 4096
MAX_KEY = 1_000_000

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
                raise self.refuse(f"opcode {opcode_name(code)} is not allowed")
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


def opcode_name(code: int) -> str:
    return NAMES.get(code, f"0x{code:02x}")


# --- opcodes: what each does to the machine --------------------------------------------------------------


def _proto(m: Machine) -> None:
    version = m.number(1)
    if m.opcode_at != 0 or not 2 <= version <= 5:
        raise m.refuse(f"protocol {version}")


def _frame(m: Machine) -> None:
    length = m.number(8)
    if length > len(m.data) - m.position:
        raise m.refuse(f"the file is cut off: a frame of {length} bytes announced")


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda m: m.push(value)


def _integer(size: int, signed: bool = False) -> Callable[[Machine], None]:
    return lambda m: m.push(m.number(size, signed))


def _long1(m: Machine) -> None:
    size = m.number(1)
    if size > 8:
        raise m.refuse(f"an integer of {size} bytes")
    m.push(m.number(size, signed=True))


def _float(m: Machine) -> None:
    start = m.take(8)
    m.push(struct.unpack_from(">d", m.data, start)[0])


def _bytes(width: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        length = m.number(width)
        start = m.take(length)
        m.push(Blob(start, start + length))

    return step


def _text(width: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        length = m.number(width)
        start = m.take(length)
        if length > MAX_TEXT:
            m.push(Blob(start, start + length, text=True))
            return
        try:
            m.push(str(m.data[start : start + length], "utf-8"))
        except UnicodeDecodeError:
            raise m.refuse("text that is not UTF-8") from None

    return step


def _get(width: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        index = m.number(width)
        if index not in m.memo:
            raise m.refuse(f"memo {index} is not there")
        m.push(m.memo[index])

    return step


def _put(width: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        m.memo[m.number(width)] = _top(m)

    return step


def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = _top(m)


def _top(m: Machine) -> Any:
    if not m.stack:
        raise m.refuse("a value is missing from the stack")
    return m.stack[-1]


def _mark(m: Machine) -> None:
    m.marked.append(m.stack)
    m.stack = []


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _pop_mark(m: Machine) -> None:
    m.pop_mark()


def _tuple(size: int) -> Callable[[Machine], None]:
    def step(m: Machine) -> None:
        if len(m.stack) < size:
            raise m.refuse("a value is missing from the stack")
        m.stack[-size:] = [tuple(m.stack[-size:])]

    return step


def _store(m: Machine, pairs: list[Any]) -> None:
    target = m.top(dict)
    if len(pairs) % 2:
        raise m.refuse("a key without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not (type(key) is str or (type(key) is int and 0 <= key < MAX_KEY)):
            raise m.refuse(f"a key of type {type(key).__name__}")
        target[key] = value


def _set_item(m: Machine) -> None:
    value = m.pop()
    _store(m, [m.pop(), value])


def _append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine) -> None:
    values = m.pop_mark()
    m.top(list).extend(values)


def _global(m: Machine) -> None:
    module = m.line()
    _find(m, module, m.line())


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.refuse("a global whose name is not text")
    _find(m, module, name)


def _find(m: Machine, module: str, name: str) -> None:
    if (module, name) not in m.table:
        raise m.refuse(f"global {f'{module[:80]}.{name[:80]}'!a} is not allowed")
    m.push(Global(module, name))


def _reduce(m: Machine) -> None:
    arguments, function = m.pop(), m.pop()
    if type(function) is not Global or type(arguments) is not tuple:
        raise m.refuse("a call of something that is not a known global")
    call = m.table[function.module, function.name]
    if call is None:
        raise m.refuse(f"a call of {function.module}.{function.name}")
    m.push(call(m, arguments))


def _new_object(m: Machine) -> None:
    arguments, cls = m.pop(), m.pop()
    made = NEW.get((cls.module, cls.name)) if type(cls) is Global else None
    if made is None or type(arguments) is not tuple or arguments:
        raise m.refuse("a new object of something that is not a known class")
    m.push(made())


def _build(m: Machine) -> None:
    state = m.pop()
    target = _top(m)
    step = BUILD.get(type(target))
    if step is None:
        raise m.refuse(f"a state for a {type(target).__name__}")
    step(m, target, state)


def _persistent(m: Machine) -> None:
    if m.persistent is None:
        raise m.refuse("a persistent id")
    m.push(m.persistent(m.pop(), m.place))


# --- objects that take a state -----------------------------------------------------------------------


def _build_module(m: Machine, target: ModuleDict, state: Any) -> None:
    if type(state) is not dict or target.state is not None:
        raise m.refuse("a module's state is malformed")
    target.state = state


def _build_dict(m: Machine, target: dict[Any, Any], state: Any) -> None:  # noqa: ARG001 - left as it is
    """torch hangs its layers' versions on a state dict as an attribute; they are read over."""
    if type(state) is not dict or list(state) != ["_metadata"]:
        raise m.refuse("a state for a dict")


def _build_dtype(m: Machine, target: NumpyDtype, state: Any) -> None:
    order = state[1] if type(state) is tuple and len(state) == 8 else None
    if target.built or type(order) is not str or order not in ("<", "|") or state[2:5] != (None,) * 3:
        raise m.refuse("a numpy dtype that is not plain and little-endian")
    target.built = True


def _build_array(m: Machine, target: NumpyArray, state: Any) -> None:
    if target.built or type(state) is not tuple or len(state) != 5:
        raise m.refuse("a numpy array's state is malformed")
    _, shape, dtype, fortran, content = state
    if type(shape) is not tuple or len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
        raise m.refuse("a numpy array's shape is malformed")
    size = dtype.itemsize if type(dtype) is NumpyDtype else 0
    for n in shape:
        size *= n
    if type(fortran) is not bool or type(content) not in (Blob, bytes) or len(content) != size or not size:
        raise m.refuse("a numpy array's content does not have the size of its shape")
    target.built = True


STOP = ord(".")
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
"""Of all opcodes, to say which was refused."""
NEW: dict[tuple[str, str], Callable[[], Any]] = {
    ("torch.nn.modules.container", "ModuleDict"): ModuleDict,
    ("dnnlib.util", "EasyDict"): dict,
}
BUILD: dict[type, Callable[[Machine, Any, Any], None]] = {
    dict: _build_dict,
    ModuleDict: _build_module,
    NumpyDtype: _build_dtype,
    NumpyArray: _build_array,
}
OPCODES: dict[int, Callable[[Machine], None]] = {
    0x80: _proto,
    0x95: _frame,
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord(")"): _constant(()),
    0x8F: _constant(frozenset()),  # sets are always empty in these files, and nothing here can fill one
    ord("}"): lambda m: m.push({}),
    ord("]"): lambda m: m.push([]),
    ord("K"): _integer(1),
    ord("M"): _integer(2),
    ord("J"): _integer(4, signed=True),
    0x8A: _long1,
    ord("G"): _float,
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    0x8E: _bytes(8),
    0x8C: _text(1),
    ord("X"): _text(4),
    0x8D: _text(8),
    ord("h"): _get(1),
    ord("j"): _get(4),
    ord("q"): _put(1),
    ord("r"): _put(4),
    0x94: _memoize,
    ord("("): _mark,
    ord("0"): _pop,
    ord("1"): _pop_mark,
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("t"): lambda m: m.push(tuple(m.pop_mark())),
    ord("s"): _set_item,
    ord("u"): lambda m: _store(m, m.pop_mark()),
    ord("a"): _append,
    ord("e"): _appends,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_object,
    ord("b"): _build,
    ord("Q"): _persistent,
}
