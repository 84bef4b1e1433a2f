"""The opcodes that Python 2 and protocols 0 and 1 write: what old data sets need beside OPCODES."""

import codecs
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sct.unpickle.opcodes import OPCODES, Step, byte_string, store, top

if TYPE_CHECKING:
    from sct.unpickle.machine import Machine

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
