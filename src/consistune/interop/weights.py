"""From records to tensors, and into a network that is first checked to need exactly these weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.interop.files import Checkpoint
from consistune.interop.openai_cm import HEAD_CHANNELS
from consistune.interop.records import TensorRecord
from consistune.nn import store
from consistune.nn.module import Factory
from consistune.nn.precond import Preconditioned

CONSTANT_BUFFERS = ("resample_filter",)
"""The constructor fills them and training does not change them; consistency_models' files lack them."""
NUMPY = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<u2",
    "int32": "<i4",
    "int64": "<i8",
    "int16": "<i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "?",
}


def to_tensor(record: TensorRecord) -> Tensor:
    """A copy of the record's elements. numpy reads them at any offset, which torch does not."""
    storage = record.storage
    flat = np.frombuffer(storage.data, NUMPY[storage.dtype], storage.count).copy()
    elements = torch.from_numpy(flat)
    if storage.dtype == "bfloat16":
        elements = elements.view(torch.bfloat16)
    return elements.as_strided(record.shape, record.stride, record.offset)


def build_model(
    config: dict[str, Any], checkpoint: Checkpoint, network: Factory | None = None
) -> Preconditioned:
    """The model of that configuration with the checkpoint's weights, in fp32 and evaluation mode.

    network: makes the module of a network that is not ours (`nn.module`).

    Names and shapes are first compared on a network without storage, so a file cannot make us allocate more
    than the weights it has. Raises UserError where names or shapes differ.
    """
    where, from_cm = checkpoint.where, checkpoint.origin == "CM"
    optional = CONSTANT_BUFFERS if from_cm else ()
    _compare(store.shapes(config, where, network), checkpoint.tensors, where, optional)
    model = store.build(config, where, network)
    own = model.state_dict()
    with torch.no_grad():
        for name, record in checkpoint.tensors.items():
            value = to_tensor(record)
            if own[name].is_floating_point() and not value.is_floating_point():
                raise UserError(f"{name[:80]!a} has integers, the network's has none", where)
            own[name].copy_(heads_innermost(value) if from_cm and ".qkv." in name else value)
    return model.eval()


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorRecord],
    where: str,
    optional: tuple[str, ...],
) -> None:
    missing = [name for name in expected if name not in tensors and not name.endswith(optional)]
    unknown = [name for name in tensors if name not in expected]
    for names, what in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"the checkpoint {what} {names[0][:80]!a}{more}", where)
    for name, record in tensors.items():
        if record.shape != expected[name]:
            shapes = f"{list(record.shape)}, the network's is {list(expected[name])}"
            raise UserError(f"{name[:80]!a} has shape {shapes}", where)


def heads_innermost(value: Tensor) -> Tensor:
    """Reorder the rows of qkv from (j, head, c), where j is q, k or v, to ADM's (head, c, j)."""
    rows = value.reshape(3, value.shape[0] // 3 // HEAD_CHANNELS, HEAD_CHANNELS, -1)
    return rows.permute(1, 2, 0, 3).reshape(value.shape)
