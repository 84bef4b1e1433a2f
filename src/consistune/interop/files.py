"""A checkpoint file: its bytes, mapped and not copied, and what was read from them."""

import hashlib
import mmap
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from consistune.errors import UserError
from consistune.interop.records import TensorRecord

MAX_BYTES = 32 << 30
MAX_TENSORS = 3_000
"""The largest published network has 563 (64×64 NCSN++, its buffers included)."""
MAX_NAME = 400
BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first bytes of torch's files before they were archives (torch 1.6)."""
ACCEPTED = "give an EDM, EDM2 or ECT snapshot (.pkl), a torch file (.pt) or a .safetensors file"

Origin = Literal["EDM", "CM", "unknown"]
"""Who made a checkpoint: EDM, EDM2 or ECT; openai/consistency_models; or the file does not say."""


@dataclass(frozen=True)
class CheckpointFile:
    """A file's bytes, and its container: "pickle", "zip" or "safetensors"."""

    path: Path
    data: memoryview
    container: str

    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: weights by their official names, and how their network was constructed.

    Attributes:
        format: in words.
        class_name: the preconditioner's class; None for a bare state dict.
        options: its constructor's arguments; for our own safetensors, the model's configuration.
        dropped: what the file holds beside the weights, and was left out.
        keys: the names at the file's top level.
        weights: where in the file they stood, where it holds several networks or has words before the names.
        others: where other networks stood.
    """

    file: CheckpointFile
    format: str
    tensors: dict[str, TensorRecord]
    class_name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    origin: Origin = "unknown"
    weights: str = ""
    others: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The file's name in errors."""
        return str(self.file.path)


def open_file(path: Path) -> CheckpointFile:
    """Map a regular file. Raises UserError for anything else, and for a file that is no checkpoint."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(error.strerror or "cannot be read", str(path), ACCEPTED) from error
    if not stat.S_ISREG(status.st_mode):  # checked before it is opened: opening a pipe would block
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
    return CheckpointFile(path, data, _container(data, path))


def _container(data: memoryview, path: Path) -> str:
    start = bytes(data[:15])
    if start == BEFORE_ZIP:
        remedy = "torch.load it with weights_only=True, and torch.save it again"
        raise UserError("a torch file of the form before torch 1.6", str(path), remedy)
    if start[3:9] == b"\0\0\0\0\0{":  # first: the length of a header may begin with a pickle's byte
        return "safetensors"
    if start[:1] == b"\x80":
        return "pickle"
    if start[:4] == b"PK\x03\x04":
        return "zip"
    raise UserError("neither a pickle, nor a torch archive, nor safetensors", str(path), ACCEPTED)
