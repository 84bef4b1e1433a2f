"""From records to tensors, and into a network that is first checked to have exactly these weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consistune.errors import UserError
from consistune.interop.openai_cm import HEAD
from consistune.interop.records import TensorRecord
from consistune.nn import store
from consistune.nn.precond import Preconditioned

CONSTANT = ("resample_filter",)
"""Buffers that the constructor fills and no training changes: a foreign state dict may lack them."""
NUMPY = {
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bfloat16": "<u2",
    "int32": "<i4",
    "int64": "<i8",
}


def to_tensor(record: TensorRecord) -> Tensor:
    """A copy of the record's elements; numpy reads them wherever in the file they stand."""
    storage = record.storage
    flat = np.frombuffer(storage.data, NUMPY[storage.dtype], storage.count).copy()
    whole = torch.from_numpy(flat)
    if storage.dtype == "bfloat16":
        whole = whole.view(torch.bfloat16)
    return whole.as_strided(record.shape, record.stride, record.offset)


def build_model(
    config: dict[str, Any], tensors: Mapping[str, TensorRecord], where: str, consistency_model: bool = False
) -> Preconditioned:
    """The model of that configuration with those weights, in fp32 and evaluation mode.

    Names and shapes are compared on a network without storage first: a file cannot make us allocate more
    than the weights it has. Weights of consistency_models lack the constant buffers, and their qkv's rows
    are in another order. Raises UserError where names or shapes differ.
    """
    _compare(store.shapes(config, where), tensors, where, may_lack=CONSTANT if consistency_model else ())
    model = store.build(config, where)
    own = model.state_dict()
    with torch.no_grad():
        for name, record in tensors.items():
            value = to_tensor(record)
            own[name].copy_(heads_innermost(value) if consistency_model and ".qkv." in name else value)
    return model.eval()


def _compare(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorRecord],
    where: str,
    may_lack: tuple[str, ...],
) -> None:
    missing = [name for name in expected if name not in tensors and not name.endswith(may_lack)]
    surplus = [name for name in tensors if name not in expected]
    for names, what in ((missing, "lacks"), (surplus, "has unknown")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"the checkpoint {what} {names[0][:80]!a}{more}", where)
    for name, record in tensors.items():
        if record.shape != expected[name]:
            shapes = f"{list(record.shape)}, the network's is {list(expected[name])}"
            raise UserError(f"{name[:80]!a} has shape {shapes}", where)


def heads_innermost(value: Tensor) -> Tensor:
    """Rows of qkv in the order (j, head, c), j of q, k, v, → (head, c, j); heads of 64 channels."""
    rows = value.reshape(3, value.shape[0] // 3 // HEAD, HEAD, -1)
    return rows.permute(1, 2, 0, 3).reshape(value.shape)
