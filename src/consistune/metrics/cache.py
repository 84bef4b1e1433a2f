"""The folder in which results that took long are kept, each file with its SHA-256 beside it.

A cache is never necessary: what cannot be written is not kept, and what is damaged is made anew.
"""

import sys
import tempfile
from functools import cache as once
from pathlib import Path

from consistune.errors import printable
from consistune.system.files import file_digest, write_atomically
from consistune.system.host import variable


def cache_folder() -> Path:
    """$CONSISTUNE_CACHE, or ~/.cache/consistune."""
    return Path(variable("CACHE") or Path.home() / ".cache" / "consistune")


@once
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="consistune-cache-")


def folder_of_this_process() -> Path:
    """A cache for this process alone, removed at its end."""
    return Path(_own_folder().name)


def usable_cache() -> Path:
    """`cache_folder`; `folder_of_this_process`, with a warning, where nothing can be written there."""
    try:
        folder = cache_folder() / "reference"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder.parent
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        not_kept(error)
        return folder_of_this_process()


def not_kept(error: Exception) -> None:
    """Warn that a result could not be written into the cache."""
    _warn(f"no cache ({error}): results are not kept")


def seal(path: Path) -> None:
    """Write the SHA-256 of a file beside it, for `intact`."""
    write_atomically(_seal_of(path), file_digest(path))


def intact(path: Path) -> bool:
    """Whether the file is there and is what was sealed; False, with a warning, for a damaged one.

    Version 0.1.0 sealed nothing: a file without a seal is taken as it is.
    """
    if not path.is_file():
        return False
    try:
        sealed = _seal_of(path).read_bytes()
    except FileNotFoundError:
        return True
    if sealed == file_digest(path).encode():
        return True
    damaged(path)
    return False


def damaged(path: Path) -> None:
    """Warn that a file of the cache cannot be used."""
    _warn(f"{path} is damaged and is made anew")


def keep(path: Path, data: bytes) -> None:
    """Write a file and its seal; a warning where they cannot be written."""
    try:
        _seal_of(path).unlink(missing_ok=True)
        write_atomically(path, data)
        seal(path)
    except OSError as error:
        not_kept(error)


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _warn(text: str) -> None:
    print(f"warning: {printable(text)}", file=sys.stderr)
