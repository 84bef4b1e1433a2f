"""What a hostile file can try, and that it gets nowhere: refused in one line, quickly, in little memory."""

import os
import struct
import time
from pathlib import Path

import pytest

from consistune.errors import UserError
from consistune.interop.reading import read_checkpoint
from tests.support.assembler import (
    EMPTY_DICT,
    EMPTY_LIST,
    EMPTY_SET,
    EMPTY_TUPLE,
    MARK,
    MEMOIZE,
    NEWOBJ,
    NONE,
    STACK_GLOBAL,
    TUPLE1,
    mapping,
    module,
    name,
    pickled,
    snapshot,
    storage,
    tensor,
    text,
)
from tests.support.hostile import CALLS, HOSTILE
from tests.support.memory import at_most


def refused(path: Path) -> str:
    """The line with which a file is refused, quickly."""
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert time.process_time() - began < 10
    line = str(caught.value)
    assert line.isprintable()
    assert str(path) in line
    return line


@pytest.mark.parametrize("label", HOSTILE)
def test_a_hostile_pickle_is_refused(label: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(HOSTILE[label])
    refused(path)


@pytest.mark.parametrize("label", [label for label in CALLS if label.isprintable()])
def test_an_unknown_global_is_named_with_its_offset(label: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(CALLS[label])
    line = refused(path)
    assert f"global {label!r} is not allowed" in line
    assert f"byte {CALLS[label].index(STACK_GLOBAL)};" in line


@pytest.mark.parametrize(
    ("label", "data"),
    [
        ("dictionaries", EMPTY_DICT * 3_000_000),
        ("nested tuples", EMPTY_TUPLE + TUPLE1 * 3_000_000),
        ("nested lists", (EMPTY_LIST + MEMOIZE) * 1_000_000 + b"a" * 900_000),
        ("marks", MARK * 3_000_000),
        ("short texts", b"\x8c\x01a" * 1_000_000),
        ("short bytes", b"C\x00" * 3_000_000),
        ("memos", NONE + b"".join(b"r" + struct.pack("<I", i) for i in range(500_000))),
        ("sets", EMPTY_SET * 3_000_000),
        (
            "new dictionaries",
            name("dnnlib.util", "EasyDict") + MEMOIZE + (b"h\x00" + EMPTY_TUPLE + NEWOBJ) * 500_000,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_stream_without_end_is_refused(label: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(pickled(data))
    assert "opcodes" in refused(path)
    with at_most(100), pytest.raises(UserError):
        read_checkpoint(path)


def test_deep_nesting_within_the_limit_is_refused_without_recursion(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(pickled(mapping(ema=EMPTY_TUPLE + TUPLE1 * 300_000)))
    refused(path)
    deep = EMPTY_LIST * 50_000 + b"a" * 49_999
    path.write_bytes(snapshot(module(mapping(w=tensor(storage())), kwargs=mapping(x=deep))))
    assert "nested too deep" in refused(path)


def test_long_embedded_text_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    source = b"\xff\xfe not even text" * 10_000
    body = snapshot(module(mapping(w=tensor(storage())))).replace(
        text("module_src") + text("x"), text("module_src") + b"X" + struct.pack("<I", len(source)) + source
    )
    path.write_bytes(body)
    assert list(read_checkpoint(path).tensors) == ["w"]


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello, I am no checkpoint")
    (tmp_path / "gzip").write_bytes(b"\x1f\x8b" + bytes(100))
    os.mkfifo(tmp_path / "pipe")
    for file, words in {
        "empty": "empty",
        "text": "neither",
        "gzip": "neither",
        "pipe": "not a file",
        ".": "is a folder without",
        "missing": "No such file",
    }.items():
        assert words in refused(tmp_path / file)


def test_every_truncation_of_a_genuine_snapshot_is_refused(parity_folder: Path, tmp_path: Path) -> None:
    networks = (parity_folder / "networks").glob("*.pkl")
    data = min(networks, key=lambda path: path.stat().st_size).read_bytes()
    path = tmp_path / "file.pkl"
    for length in [*range(1, 400), *range(400, len(data), 1499), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            read_checkpoint(path)
