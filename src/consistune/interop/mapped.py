"""A checkpoint's bytes: mapped, not copied, and recognised by how they begin."""

import hashlib
import mmap
import stat
from dataclasses import dataclass
from pathlib import Path

from consistune.errors import UserError

MAX_BYTES = 32 << 30
BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How torch's files began before they were archives (1.6)."""
ACCEPTED = "give an EDM, EDM2 or ECT snapshot (.pkl), a torch file (.pt) or a .safetensors file"


@dataclass(frozen=True)
class Source:
    """A file's bytes, and what kind of container they are: "pickle", "zip" or "safetensors"."""

    path: Path
    data: memoryview
    container: str

    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def open_source(path: Path) -> Source:
    """Map a regular file. Raises UserError for what is none, empty, huge, or unlike a checkpoint."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", str(path), ACCEPTED) from error
    if not stat.S_ISREG(status.st_mode):  # before it is opened: opening a pipe would wait for ever
        raise UserError("not a file", str(path), ACCEPTED)
    if status.st_size == 0:
        raise UserError("the file is empty", str(path), "download it again")
    if status.st_size > MAX_BYTES:
        raise UserError(f"{status.st_size >> 30} GiB is more than any checkpoint has", str(path), ACCEPTED)
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", str(path)) from error
    return Source(path, data, _container(data, path))


def _container(data: memoryview, path: Path) -> str:
    start = bytes(data[:15])
    if start == BEFORE_ZIP:
        remedy = "torch.load it with weights_only=True, and torch.save it again"
        raise UserError("a torch file of the form before torch 1.6", str(path), remedy)
    if start[:1] == b"\x80":
        return "pickle"
    if start[:4] == b"PK\x03\x04":
        return "zip"
    if start[8:9] == b"{":
        return "safetensors"
    raise UserError("neither a pickle, nor a torch archive, nor safetensors", str(path), ACCEPTED)
