"""A ZIP's directory against Python's own reader, and when it is damaged."""

import contextlib
import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consistune.data.sources.base import SourceOptions
from consistune.data.sources.zips import open_zip
from consistune.errors import UserError
from consistune.system import zipped
from tests.support.makers import edm_zip, pixels


def archive(comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/b.txt", b"x" * 50)
        file.writestr("größe.png", b"y" * 500, zipfile.ZIP_DEFLATED)
        file.writestr("empty/", b"")
        file.comment = comment
    return buffer.getvalue()


@pytest.mark.parametrize("limits", [{}, {"ZIP_FILECOUNT_LIMIT": 1}, {"ZIP64_LIMIT": 20}])
@pytest.mark.parametrize("comment", [b"", b"PK\x05" * 100])
def test_entries_are_those_that_python_reads(
    limits: dict[str, int], comment: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where numbers stand in the 64-bit fields, as in archives beyond 4 GB or 65,535 members."""
    for name, value in limits.items():
        monkeypatch.setattr(zipfile, name, value)
    data = archive(comment)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        theirs = [
            (i.filename, i.flag_bits, i.compress_type, i.CRC, i.compress_size, i.file_size, i.header_offset)
            for i in file.infolist()
        ]
    view = memoryview(data)
    assert [tuple(entry) for entry in zipped.entries(view, *zipped.directory(view))] == theirs


@given(
    cut=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 7)), max_size=4)
)
def test_a_damaged_directory_is_refused_or_read_and_nothing_else(
    cut: int, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(archive())
    for place, bit in flips:
        data[-1 - place % len(data)] ^= 1 << bit
    view = memoryview(bytes(data[: len(data) - cut % 50 if cut % 2 else len(data)]))
    with contextlib.suppress(ValueError):
        found = list(zipped.entries(view, *zipped.directory(view)))
        assert len(found) <= len(view) // 46


def test_every_cut_of_a_set_is_refused(tmp_path: Path) -> None:
    data = edm_zip(tmp_path / "whole.zip", pixels(3, 4, 4), [0, 1, 0]).read_bytes()
    for length in range(0, len(data), 7):
        (tmp_path / "cut.zip").write_bytes(data[:length])
        with pytest.raises(UserError):
            open_zip(tmp_path / "cut.zip", SourceOptions(), tmp_path)
