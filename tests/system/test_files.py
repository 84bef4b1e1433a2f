"""Files: whole or not there, and their digests."""

from pathlib import Path

import pytest

from consistune.errors import UserError
from consistune.system.files import atomic_file, check_writable, file_digest, write_atomically


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    """The test vector "abc" of FIPS 180-2, appendix B.1."""
    write_atomically(tmp_path / "file", "abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "file") == file_digest(str(tmp_path / "file")) == known


def test_an_error_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_that_is_too_long_for_the_unfinished_file_is_refused_before(tmp_path: Path) -> None:
    for length in (200, 250, 300):
        path = tmp_path / "new" / ("x" * length)
        if length == 200:
            check_writable(path, "--out")
            continue
        with pytest.raises(UserError, match=r"--out: .*name too long"):
            check_writable(path, "--out")
    assert not list(tmp_path.iterdir())
