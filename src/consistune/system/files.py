"""Atomic writing of files and folders (beside the destination, then renamed), and the SHA-256 of files."""

import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from consistune.errors import UserError

PARTIAL = re.compile(r"\.(.+)\.\d+\.partial")
"""The name of a file that is not written to its end, with the name that it is to get."""


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file for writing that gets its name when the block ends, complete and on the disk.

    On an error nothing is left, and a file that had the name before stays. An OSError names the file. Where
    the name is a link, the link stays, and the file that it names is written.
    """
    path = path.resolve() if path.is_symlink() else path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """The name of a file that is not written to its end."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def partial_of(name: str) -> str | None:
    """The name that a file is to get which is not written to its end; None for other files."""
    match = PARTIAL.fullmatch(name)
    return match and match[1]


def remove_partial(folder: Path, names: Collection[str]) -> None:
    """Remove what killed processes left of files of these names, which they did not write to their end."""
    for path in list(folder.glob(".*.partial")):
        if partial_of(path.name) in names:
            path.unlink(missing_ok=True)


def check_writable(path: Path, option: str, *, folder: bool = False) -> None:
    """Try whether a file, or a folder of files, could be written at `path`; leaves nothing behind.

    Raises UserError, which names the option.
    """
    try:
        for link in (path, *path.parents):
            if link.is_symlink() and not link.exists():
                what = f"{str(link)!a} is a link to {str(link.readlink())!a}, which is not there"
                raise UserError(what, option, "make what it names, or choose another name")
        if path.exists() and path.is_dir() != folder:
            kind = "a file" if folder else "a folder"
            raise UserError(f"{str(path)!a} is {kind}", option, "choose another name")
        target = path.resolve() if path.is_symlink() else path
        place = target if folder else target.parent
        while not place.exists():
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
        if not folder:
            with suppress(FileNotFoundError):  # a name that is too long is another error
                os.stat(place / _partial(target).name)
    except OSError as error:
        raise UserError(
            f"{str(path)!a} cannot be written: {error.strerror}", option, "choose another place"
        ) from error


def check_room(folder: Path, size: int) -> None:
    """Raises UserError where the disk of a folder has not so many bytes free."""
    free = shutil.disk_usage(folder).free
    if size > free:
        what = f"{size:,} bytes are needed, {free:,} are free"
        raise UserError(what, str(folder), "free some space, or use another disk")


def sync(path: Path) -> None:
    """Wait until a file's data, or a folder's names, are on the disk; on Windows nothing is waited for."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file whole, through `atomic_file`."""
    with atomic_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read", str(path.parent)) from error
    if not isinstance(found, dict):
        raise UserError(f"{path.name} holds no object", str(path.parent))
    return found


def previous(folder: Path) -> Path:
    """The name under which the old contents of `folder` wait while `replace_folder` replaces it."""
    return folder.with_name(f".{folder.name}.old")


def replace_folder(new: Path, folder: Path) -> None:
    """Give the folder `new` the name `folder`, and remove what had the name before.

    The caller must have made sure that the old folder may be removed. On Linux the two exchange their names
    in one step. Elsewhere the old folder is renamed to `previous(folder)` first and removed last: a process
    that is killed between the two renames leaves it under that name, from which a reader can take it.
    """
    old = previous(folder)
    if folder.exists() and exchange(new, folder):
        sync(folder.parent)
        shutil.rmtree(new)
        return
    if folder.exists():
        if old.exists():
            shutil.rmtree(old)
        folder.rename(old)
    new.rename(folder)
    sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def exchange(a: Path, b: Path) -> bool:
    """Give two files or folders each other's name in one step; False where the system cannot.

    renameat2(2) of Linux 3.15 and glibc 2.28; file systems such as NFS refuse it.
    """
    at_the_working_folder, exchange_names = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here = at_the_working_folder
    return bool(renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange_names) == 0)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
