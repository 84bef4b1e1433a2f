"""Plain data in pickles: what Python's own unpickler reads is read alike, and nothing else is."""

import contextlib
import pickle
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistune.errors import UserError
from consistune.pickles.arrays import read_arrays
from tests.support.assembler import (
    DTYPE,
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NONE,
    TUPLE1,
    TUPLE2,
    blob,
    call,
    integer,
    name,
    pickled,
    text,
    tuple_of,
)
from tests.support.hostile import CALLS, FORBIDDEN
from tests.support.memory import at_most

DTYPES = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "?"]


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return ours.dtype == theirs.dtype and ours.shape == theirs.shape and bool((ours == theirs).all())
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    return type(ours) is type(theirs) and ours == theirs


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(min_size=1, max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=8) | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("protocol", range(6))
@given(value=PLAIN)
def test_plain_values_are_read_as_python_reads_them(protocol: int, value: Any) -> None:
    assert same(read_arrays(pickle.dumps(value, protocol), "x"), value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_read_as_python_reads_them(protocol: int, dtype: str) -> None:
    numbers = np.random.default_rng(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    shared = numbers[0]
    value = {
        "a": numbers,
        "f": np.asfortranarray(numbers),
        "long": np.resize(numbers, 9000),
        "list": [shared, shared],
    }
    values = read_arrays(pickle.dumps(value, protocol), "x")
    assert same(values, value)
    assert values["list"][0] is values["list"][1]
    if dtype != "?":
        assert same(read_arrays(pickle.dumps([numbers[0, 0, 0]], protocol), "x"), [numbers[0, 0, 0].item()])


@pytest.mark.parametrize(
    ("theirs", "other"), [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")]
)
def test_both_of_numpys_module_paths_are_known(theirs: bytes, other: bytes) -> None:
    value = [np.arange(6.0).reshape(2, 3), np.float32(2.5)]
    data = pickle.dumps(value, 0).replace(theirs, other)
    assert other in data
    assert same(read_arrays(data, "x"), [value[0], 2.5])


def test_keys_of_python_2_become_text() -> None:
    old = b"\x80\x02}q\x01(U\x04dataq\x02U\x02\xff\x00q\x03U\x06labelsq\x04]q\x05(K\x01K\x02eu."
    assert read_arrays(old, "x") == {"data": b"\xff\x00", "labels": [1, 2]}
    assert read_arrays(b"(dp0\nS'da\\'ta'\np1\nI5\nsS'b'\np2\nL7L\ns.", "x") == {"da'ta": 5, "b": 7}


def test_the_official_layouts_are_read_as_python_reads_them(shared: Path, tmp_path: Path) -> None:
    formats = shared / "data" / "formats"
    shutil.unpack_archive(formats / "cifar-format" / "cifar-10-python.tar.gz", tmp_path)
    files = sorted((tmp_path / "cifar-10-batches-py").iterdir())
    files += sorted((formats / "imagenet64-format" / "Imagenet64_pickle").iterdir())
    for path in files:
        if path.suffix in (".html", ".txt"):
            continue
        theirs = pickle.loads(path.read_bytes(), encoding="bytes")
        theirs = {k.decode() if isinstance(k, bytes) else k: v for k, v in theirs.items()}
        assert same(read_arrays(path.read_bytes(), str(path)), theirs), path


@pytest.mark.parametrize("protocol", range(6))
def test_the_edges_of_64_bits_are_read(protocol: int) -> None:
    value = [-(2**63), 2**63 - 1, -(2**31), 2**31 - 1]
    assert read_arrays(pickle.dumps(value, protocol), "x") == value


# --- what is refused -------------------------------------------------------------------------------------


def refused(data: bytes) -> str:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        read_arrays(data, "x.pkl")
    assert time.process_time() - began < 10
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("label", [label for label in CALLS if label != "_codecs.encode"])
def test_no_global_but_numpys_is_known(label: str) -> None:
    assert "is not allowed at byte" in refused(CALLS[label])


OLD_FORMS = {"FLOAT", "STRING", "UNICODE", "PUT", "protocol 1"}
"""What old pickles of plain data do use."""


@pytest.mark.parametrize("label", [label for label in FORBIDDEN if label not in OLD_FORMS])
def test_opcodes_that_import_are_refused(label: str) -> None:
    refused(FORBIDDEN[label])


@pytest.mark.parametrize("array", [np.array([{}, []], dtype=object), np.array(["ab"]), np.zeros(2, "M8[s]")])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_arrays_of_anything_but_numbers_are_refused(array: np.ndarray[Any, Any], protocol: int) -> None:
    refused(pickle.dumps(array, protocol))


F8 = call(DTYPE, text("f8"), b"\x89", b"\x88")
ORDER = tuple_of(integer(3), text("<"), NONE, NONE, NONE, integer(-1), integer(-1), integer(0))
NDARRAY = call(
    name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), tuple_of(integer(0)), blob(b"b")
)


def array(shape: bytes, content: bytes) -> bytes:
    return pickled(NDARRAY + tuple_of(integer(1), shape, F8 + ORDER + b"b", b"\x89", content) + b"b")


HOSTILE = {
    "a shape beyond its content": array(tuple_of(integer(1 << 40), integer(1 << 40)), blob(bytes(8))),
    "negative": array(tuple_of(integer(-1)), blob(bytes(8))),
    "content that is announced, not there": array(tuple_of(integer(1)), b"B\xff\xff\xff\x7f"),
    "an array in itself": pickled(EMPTY_LIST + MEMOIZE + b"h\x00a"),
    "a dictionary in itself": pickled(EMPTY_DICT + MEMOIZE + text("x") + b"h\x00s"),
    "deep": pickled(EMPTY_TUPLE + TUPLE1 * 100_000),
    "an array without content": pickled(NDARRAY),
    "a name": pickled(name("numpy", "ndarray")),
    "a dtype": pickled(F8),
    "a key that is a tuple": pickled(EMPTY_DICT + EMPTY_TUPLE + NONE + b"s"),
    "a long number": b"L" + b"9" * 200 + b"L\n.",
    "no number": b"Ixyz\n.",
    "no memo": b"g99\n.",
    "a huge memo": b"Np99999999999999999\n.",
    "an open string": b"S'abc\n.",
    "a broken escape": b"S'\\x'\n.",
    "text that is cut off": b"S'abc",
    "many dictionaries": pickled(EMPTY_DICT * 3_000_000),
    "many lines": b"I1\n" * 1_000_000,
    "one text encoded again and again": pickled(
        name("_codecs", "encode")
        + MEMOIZE
        + tuple_of(text("a" * 1_000_000), text("latin1"))
        + MEMOIZE
        + b"h\x00h\x01R0" * 90_000
    ),
}


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_file_is_refused_at_once_and_in_little_memory(label: str) -> None:
    refused(HOSTILE[label])
    with at_most(150), pytest.raises(UserError):
        read_arrays(HOSTILE[label], "x")


def test_lists_that_double_cost_what_the_file_says() -> None:
    """[a, a] of [b, b] of …: 2³⁰ leaves where they are counted, 30 lists where they are shared."""
    data = pickled(EMPTY_LIST + MEMOIZE + b"".join(b"h" + bytes([i]) + TUPLE2[:0] + b"h" + bytes([i])
                   + TUPLE2 + MEMOIZE for i in range(30)))  # fmt: skip
    with pytest.raises(UserError, match="left over"):
        read_arrays(data, "x")
    body = EMPTY_LIST + MEMOIZE + b"".join(b"h" + bytes([i]) + TUPLE2 + MEMOIZE for i in range(30))
    began = time.process_time()
    value = read_arrays(pickled(body), "x")
    assert time.process_time() - began < 5
    for _ in range(30):
        assert value[0] is value[1]
        value = value[0]


@given(cut=st.integers(1, 10**6), flip=st.integers(0, 7), position=st.integers(0, 10**6))
def test_what_is_cut_off_is_refused_and_what_is_damaged_raises_nothing_else(
    cut: int, flip: int, position: int
) -> None:
    data = bytearray(pickle.dumps({"data": np.arange(100), "labels": [1, 2], "text": "x"}, 2))
    with pytest.raises(UserError):
        read_arrays(bytes(data[: cut % len(data)]), "x")
    data[position % len(data)] ^= 1 << flip
    with contextlib.suppress(UserError):
        read_arrays(bytes(data), "x")


def test_marks_and_lengths_at_the_edges() -> None:
    assert "cut off" in refused(b"\x80\x02T" + struct.pack("<I", 0xFFFFFFFF))
    assert "no pickle" not in refused(MARK * 10)
