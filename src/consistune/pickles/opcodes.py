"""What each allowed opcode does to the `Machine`: the whole of what a pickle can make us do.

Opcodes that are not in OPCODES are refused: those that import by other ways (INST, OBJ, EXT, NEWOBJ_EX),
persistent ids but in torch archives, and whatever is to come. What only Python 2 and protocols 0 and 1 write
is in `text_opcodes`.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from consistune.pickles.markers import Blob, Global

if TYPE_CHECKING:
    from consistune.pickles.machine import Machine


import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consistune.pickles.machine import Machine


Step = Callable[["Machine"], None]
MAX_TEXT, MAX_KEY = 4096, 1_000_000


def _proto(m: "Machine") -> None:
    version = m.number(1)
    if m.opcode_at != 0 or not m.dialect.oldest <= version <= 5:
        raise m.refuse(f"protocol {version}")


def _frame(m: "Machine") -> None:
    length = m.number(8)
    if length > len(m.data) - m.position:
        raise m.refuse(f"the file is cut off: a frame of {length} bytes announced")


def _constant(value: Any) -> Step:
    return lambda m: m.push(value)


def _integer(size: int, signed: bool = False) -> Step:
    return lambda m: m.push(m.number(size, signed))


def _long1(m: "Machine") -> None:
    size = m.number(1)
    if size > 8:
        raise m.refuse(f"an integer of {size} bytes")
    m.push(m.number(size, signed=True))


def _float(m: "Machine") -> None:
    start = m.take(8)
    m.push(struct.unpack_from(">d", m.data, start)[0])


def byte_string(width: int) -> Step:
    """Bytes after a length of `width` bytes."""

    def step(m: "Machine") -> None:
        length = m.number(width)
        start = m.take(length)
        m.push(Blob(start, start + length))

    return step


def _text(width: int) -> Step:
    def step(m: "Machine") -> None:
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


def _get(width: int) -> Step:
    def step(m: "Machine") -> None:
        index = m.number(width)
        if index not in m.memo:
            raise m.refuse(f"memo {index} is not there")
        m.push(m.memo[index])

    return step


def _put(width: int) -> Step:
    def step(m: "Machine") -> None:
        m.memo[m.number(width)] = top(m)

    return step


def _memoize(m: "Machine") -> None:
    m.memo[len(m.memo)] = top(m)


def top(m: "Machine") -> Any:
    """The value on top, left there."""
    if not m.stack:
        raise m.refuse("a value is missing from the stack")
    return m.stack[-1]


def _mark(m: "Machine") -> None:
    m.marked.append(m.stack)
    m.stack = []


def _pop(m: "Machine") -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _pop_mark(m: "Machine") -> None:
    m.pop_mark()


def _tuple(size: int) -> Step:
    def step(m: "Machine") -> None:
        if len(m.stack) < size:
            raise m.refuse("a value is missing from the stack")
        m.stack[-size:] = [tuple(m.stack[-size:])]

    return step


def store(m: "Machine", pairs: list[Any]) -> None:
    """Keys and values by turns, into the dictionary on top."""
    target = m.top(dict)
    if len(pairs) % 2:
        raise m.refuse("a key without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        target[m.dialect.key(m, key)] = value


def plain_key(m: "Machine", key: Any) -> str | int:
    """Text and small numbers are keys: none that is costly to hash."""
    if not (type(key) is str or (type(key) is int and 0 <= key < MAX_KEY)):
        raise m.refuse(f"a key of type {type(key).__name__}")
    return key


def _set_item(m: "Machine") -> None:
    value = m.pop()
    store(m, [m.pop(), value])


def _append(m: "Machine") -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: "Machine") -> None:
    values = m.pop_mark()
    m.top(list).extend(values)


def _global(m: "Machine") -> None:
    module = m.line().decode("ascii", "backslashreplace")
    _find(m, module, m.line().decode("ascii", "backslashreplace"))


def _stack_global(m: "Machine") -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.refuse("a global whose name is not text")
    _find(m, module, name)


def _find(m: "Machine", module: str, name: str) -> None:
    if (module, name) not in m.dialect.globals:
        raise m.refuse(f"global {f'{module[:80]}.{name[:80]}'!a} is not allowed")
    m.push(Global(module, name))


def _reduce(m: "Machine") -> None:
    arguments, function = m.pop(), m.pop()
    if type(function) is not Global or type(arguments) is not tuple:
        raise m.refuse("a call of something that is not a known global")
    call = m.dialect.globals[function.module, function.name]
    if call is None:
        raise m.refuse(f"a call of {function.module}.{function.name}")
    m.push(call(m, arguments))


def _new_object(m: "Machine") -> None:
    arguments, cls = m.pop(), m.pop()
    made = m.dialect.new.get((cls.module, cls.name)) if type(cls) is Global else None
    if made is None or type(arguments) is not tuple or arguments:
        raise m.refuse("a new object of something that is not a known class")
    m.push(made())


def _build(m: "Machine") -> None:
    state = m.pop()
    target = top(m)
    step = m.dialect.build.get(type(target))
    if step is None:
        raise m.refuse(f"a state for a {type(target).__name__}")
    step(m, target, state)


def _persistent(m: "Machine") -> None:
    if m.persistent is None:
        raise m.refuse("a persistent id")
    m.push(m.persistent(m.pop(), m.place))


STOP = ord(".")
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
"""Of all opcodes, to say which was refused."""
OPCODES: dict[int, Step] = {
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
    ord("C"): byte_string(1),
    ord("B"): byte_string(4),
    0x8E: byte_string(8),
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
    ord("u"): lambda m: store(m, m.pop_mark()),
    ord("a"): _append,
    ord("e"): _appends,
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_object,
    ord("b"): _build,
    ord("Q"): _persistent,
}


MAX_LINE = 1 << 28


def _text_number(kind: Callable[[bytes], Any]) -> Step:
    def step(m: "Machine") -> None:
        line = m.line()
        try:
            m.push(kind(line))
        except (ValueError, OverflowError):
            raise m.refuse(f"{line[:40]!r} is not a number") from None

    return step


def _text_int(line: bytes) -> int:
    if line in (b"00", b"01"):  # how protocols 0 and 1 write False and True
        return line == b"01"
    if len(line) > 20:
        raise ValueError("longer than 64 bits")
    return int(line.removesuffix(b"L"))


def _quoted(m: "Machine") -> None:
    line = m.line(MAX_LINE)
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise m.refuse("a string without its quotes")
    try:
        m.push(codecs.escape_decode(line[1:-1])[0])
    except ValueError:
        raise m.refuse("a string with a broken escape") from None


def _unicode_line(m: "Machine") -> None:
    try:
        m.push(str(m.line(MAX_LINE), "raw-unicode-escape"))
    except UnicodeDecodeError:
        raise m.refuse("text with a broken escape") from None


def _text_index(m: "Machine") -> int:
    line = m.line()
    if not line.isdigit() or len(line) > 9:
        raise m.refuse(f"{line[:40]!r} is not a place in the memo")
    return int(line)


def _get_text(m: "Machine") -> None:
    index = _text_index(m)
    if index not in m.memo:
        raise m.refuse(f"memo {index} is not there")
    m.push(m.memo[index])


def _put_text(m: "Machine") -> None:
    m.memo[_text_index(m)] = top(m)


def _dict_of_marked(m: "Machine") -> None:
    pairs = m.pop_mark()
    m.push({})
    store(m, pairs)


TEXT_OPCODES: dict[int, Step] = {
    **OPCODES,
    ord("I"): _text_number(_text_int),
    ord("L"): _text_number(_text_int),
    ord("F"): _text_number(float),
    ord("S"): _quoted,
    ord("V"): _unicode_line,
    ord("U"): byte_string(1),
    ord("T"): byte_string(4),
    ord("g"): _get_text,
    ord("p"): _put_text,
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("d"): _dict_of_marked,
    0x96: byte_string(8),  # protocol 5's bytearray: what it holds is not changed here either
}
