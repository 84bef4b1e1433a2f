"""What a checkpoint holds, whatever its format, and how much of it is believed."""

from dataclasses import dataclass, field
from typing import Any

from consistune.interop.mapped import Source
from consistune.interop.records import TensorRecord

MAX_TENSORS = 3_000
"""The largest published network has 563 (64×64 NCSN++, its buffers included)."""
MAX_NAME = 400


@dataclass
class Snapshot:
    """What a checkpoint says: weights by their official names, and how their network was constructed.

    Attributes:
        kind: the format, in words.
        class_name: the preconditioner's class; None for a bare state dict.
        options: its constructor's arguments; for safetensors of ours, the model's configuration.
        dropped: what the file holds beside the weights, and was left.
        keys: the names at the file's top level.
    """

    source: Source
    kind: str
    class_name: str | None
    options: dict[str, Any]
    tensors: dict[str, TensorRecord]
    dropped: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
