"""Which files this program made: a command replaces those, and no others."""

import json
import zipfile
from collections.abc import Collection
from pathlib import Path

from consistune.errors import UserError
from consistune.system.files import check_writable

MARK = "consistune"
"""In what this program writes: `Software` of a PNG file, the name of an array of an .npz file."""
PNG_MARK = b"tEXtSoftware\0" + MARK.encode()
ARRAYS = ({f"{MARK}.npy"}, {"arr_0.npy", "seeds.npy"})
"""One of these sets is in every .npz file of this program."""
UNKNOWN = "is already there, and nothing in it says that this command wrote it"
HEAD = 1 << 12
"""The first bytes of a PNG file, in which its text lies."""


def is_own(path: Path, keys: Collection[str] = ()) -> bool:
    """Whether this program made a file. PNG and .npz: by MARK; JSON, CSV, an .npz's arrays: by `keys`."""
    try:
        match path.suffix.lower():
            case ".png":
                with path.open("rb") as file:
                    return PNG_MARK in file.read(HEAD)
            case ".npz":
                with zipfile.ZipFile(path) as archive:
                    names = set(archive.namelist())
                return any(arrays <= names for arrays in ARRAYS) and {f"{key}.npy" for key in keys} <= names
            case ".json":
                found = json.loads(path.read_text(encoding="utf-8"))
                return isinstance(found, dict) and bool(keys) and set(keys) <= found.keys()
            case ".csv":
                with path.open(encoding="utf-8") as text:
                    return bool(keys) and text.readline().strip().split(",") == list(keys)
    except (OSError, ValueError, RecursionError, zipfile.BadZipFile):
        pass
    return False


def check_file(path: Path, option: str, keys: Collection[str] = ()) -> None:
    """Raises UserError where a file cannot be written, or would replace one that this program did not make.

    keys: of the object in a JSON file, or names of an .npz file's arrays, as `is_own` takes them.
    """
    check_writable(path, option)
    if path.exists() and not is_own(path, keys):
        raise UserError(f"{str(path)!a} {UNKNOWN}", option, "choose another name, or move it away")


def check_folder(
    folder: Path, option: str, names: Collection[str], record: str, keys: Collection[str]
) -> None:
    """Raises UserError where a folder cannot be written, or where files of these names are another's.

    They are this program's where `record` is one of them and `is_own` knows it by `keys`.
    """
    check_writable(folder, option, folder=True)
    found = [name for name in names if (folder / name).exists()]
    if found and not is_own(folder / record, keys):
        what = f"{str(folder / found[0])!a} {UNKNOWN}"
        raise UserError(what, option, "choose another folder, or move it away")
