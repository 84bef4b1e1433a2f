"""The opcodes: each is a function that changes the machine. A pickle can do nothing else.

Opcodes outside these tables are refused, among them INST, OBJ, EXT and NEWOBJ_EX, which import in other ways.
`OPCODES` is what checkpoints need; `TEXT_OPCODES` adds what Python 2 and protocols 0 and 1 write.
"""

import codecs
import struct
from collections.abc import Callable
from typing import Any

from consistune.pickles.machine import Global, Machine, Step

MAX_TEXT = 4096
"""Bytes. Names are shorter; longer text stays a `ByteRange`."""
MAX_LINE = 1 << 28


def _proto(m: Machine) -> None:
    version = m.number(1)
    if m.opcode_at != 0 or not m.dialect.min_protocol <= version <= 5:
        raise m.refuse(f"protocol {version}")


def _frame(m: Machine) -> None:
    length = m.number(8)
    if length > len(m.data) - m.position:
        raise m.refuse(f"the file is cut off: a frame of {length} bytes announced")


# --- values ----------------------------------------------------------------------------------------------


def _constant(value: Any) -> Step:
    return lambda m: m.push(value)


def _integer(size: int, signed: bool = False) -> Step:
    return lambda m: m.push(m.number(size, signed))


def _long1(m: Machine) -> None:
    size = m.number(1)
    if size > 8:
        raise m.refuse(f"an integer of {size} bytes")
    m.push(m.number(size, signed=True))


def _float(m: Machine) -> None:
    m.push(struct.unpack_from(">d", m.data, m.skip(8).start)[0])


def _bytes(width: int) -> Step:
    """Bytes, after their length as a number of `width` bytes."""
    return lambda m: m.push(m.skip(m.number(width)))


def _text(width: int) -> Step:
    """UTF-8 text, after its length as a number of `width` bytes."""

    def step(m: Machine) -> None:
        content = m.skip(m.number(width))
        if len(content) > MAX_TEXT:
            content.text = True
            m.push(content)
            return
        try:
            m.push(m.bytes_of(content).decode())
        except UnicodeDecodeError:
            raise m.refuse("text that is not UTF-8") from None

    return step


# --- the stack, containers and the memo ------------------------------------------------------------------


def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.top()


def _put(index: Callable[[Machine], int]) -> Step:
    def step(m: Machine) -> None:
        m.memo[index(m)] = m.top()

    return step


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


def _tuple(size: int) -> Step:
    def step(m: Machine) -> None:
        m.require(size)
        m.stack[-size:] = [tuple(m.stack[-size:])]

    return step


def _store(m: Machine, pairs: list[Any]) -> None:
    """Put alternating keys and values into the dictionary on top of the stack."""
    target = m.top(dict)
    if len(pairs) % 2:
        raise m.refuse("a key without a value")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        target[m.dialect.key(m, key)] = value


def _set_item(m: Machine) -> None:
    value = m.pop()
    _store(m, [m.pop(), value])


def _append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def _appends(m: Machine) -> None:
    values = m.pop_mark()
    m.top(list).extend(values)


# --- names and calls -------------------------------------------------------------------------------------


def _global(m: Machine) -> None:
    module = m.line().decode("ascii", "backslashreplace")
    _push_global(m, module, m.line().decode("ascii", "backslashreplace"))


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    if type(name) is not str or type(module) is not str:
        raise m.refuse("a global whose name is not text")
    _push_global(m, module, name)


def _push_global(m: Machine, module: str, name: str) -> None:
    if (module, name) not in m.dialect.globals:
        raise m.refuse(f"global {f'{module[:80]}.{name[:80]}'!a} is not allowed")
    m.push(Global(module, name))


def _reduce(m: Machine) -> None:
    arguments, function = m.pop(), m.pop()
    if type(function) is not Global or type(arguments) is not tuple:
        raise m.refuse("a call of something that is not a known global")
    call = m.dialect.globals[function.module, function.name]
    if call is None:
        raise m.refuse(f"a call of {function.module}.{function.name}")
    m.push(call(m, arguments))


def _new_object(m: Machine) -> None:
    arguments, cls = m.pop(), m.pop()
    make = m.dialect.new.get((cls.module, cls.name)) if type(cls) is Global else None
    if make is None or type(arguments) is not tuple or arguments:
        raise m.refuse("a new object of something that is not a known class")
    m.push(make())


def _build(m: Machine) -> None:
    state, target = m.pop(), m.top()
    build = m.dialect.build.get(type(target))
    if build is None:
        raise m.refuse(f"a state for a {type(target).__name__}")
    build(m, target, state)


def _persistent(m: Machine) -> None:
    if m.persistent is None:
        raise m.refuse("a persistent id")
    m.push(m.persistent(m.pop(), m.location))


OPCODES: dict[int, Step] = {
    0x80: _proto,
    0x95: _frame,
    ord("N"): _constant(None),
    0x88: _constant(True),
    0x89: _constant(False),
    ord(")"): _constant(()),
    0x8F: _constant(frozenset()),  # sets are always empty in these files, and no opcode here fills one
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
    ord("h"): lambda m: m.recall(m.number(1)),
    ord("j"): lambda m: m.recall(m.number(4)),
    ord("q"): _put(lambda m: m.number(1)),
    ord("r"): _put(lambda m: m.number(4)),
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


# --- what only Python 2 and protocols 0 and 1 write ------------------------------------------------------


def _text_number(parse: Callable[[bytes], Any]) -> Step:
    def step(m: Machine) -> None:
        line = m.line()
        try:
            m.push(parse(line))
        except (ValueError, OverflowError):
            raise m.refuse(f"{line[:40]!r} is not a number") from None

    return step


def _parse_int(line: bytes) -> int:
    if line in (b"00", b"01"):  # how protocols 0 and 1 write False and True
        return line == b"01"
    digits = line.removesuffix(b"L")
    if len(digits) > 20:
        raise ValueError("longer than 64 bits")
    return int(digits)


def _quoted(m: Machine) -> None:
    line = m.line(MAX_LINE)
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise m.refuse("a string without its quotes")
    try:
        m.push(codecs.escape_decode(line[1:-1])[0])
    except ValueError:
        raise m.refuse("a string with a broken escape") from None


def _unicode_line(m: Machine) -> None:
    try:
        m.push(str(m.line(MAX_LINE), "raw-unicode-escape"))
    except UnicodeDecodeError:
        raise m.refuse("text with a broken escape") from None


def _text_index(m: Machine) -> int:
    line = m.line()
    if not line.isdigit() or len(line) > 9:
        raise m.refuse(f"{line[:40]!r} is not an index of the memo")
    return int(line)


def _dict_of_marked(m: Machine) -> None:
    pairs = m.pop_mark()
    m.push({})
    _store(m, pairs)


TEXT_OPCODES: dict[int, Step] = {
    **OPCODES,
    ord("I"): _text_number(_parse_int),
    ord("L"): _text_number(_parse_int),
    ord("F"): _text_number(float),
    ord("S"): _quoted,
    ord("V"): _unicode_line,
    ord("U"): _bytes(1),
    ord("T"): _bytes(4),
    ord("g"): lambda m: m.recall(_text_index(m)),
    ord("p"): _put(_text_index),
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("d"): _dict_of_marked,
    0x96: _bytes(8),  # protocol 5's bytearray, read as bytes
}
