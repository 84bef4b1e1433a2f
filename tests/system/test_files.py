"""Files: whole or not there, and their digests."""

from pathlib import Path

import pytest

from consistune.errors import UserError
from consistune.system.files import atomic_file, check_writable, file_digest, remove_partial, write_atomically


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


def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path) -> None:
    real, link = tmp_path / "elsewhere" / "real.png", tmp_path / "latest.png"
    write_atomically(real, "old")
    link.symlink_to(Path("elsewhere") / "real.png")
    check_writable(link, "--out")
    write_atomically(link, "new")
    assert (link.is_symlink(), real.read_text()) == (True, "new")
    assert sorted(tmp_path.rglob("*")) == [real.parent, real, link]


@pytest.mark.parametrize("folder", [False, True])
def test_a_link_to_nothing_is_refused(folder: bool, tmp_path: Path) -> None:
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to(tmp_path / "later.png")
    loop.symlink_to(loop)
    for path in (link, link / "a.png", loop):
        with pytest.raises(UserError, match=r"--out: .* is a link to .*, which is not there; make what it"):
            check_writable(path, "--out", folder=folder)
    assert sorted(tmp_path.iterdir()) == [link, loop]


def test_what_a_kill_left_of_known_files_is_removed(tmp_path: Path) -> None:
    names = (".a.json.12.partial", ".b.json.12.partial", ".a.json.old", "a.json", ".x.a.json.1.partial")
    for name in names:
        (tmp_path / name).touch()
    remove_partial(tmp_path, ["a.json", "c.json"])
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])
