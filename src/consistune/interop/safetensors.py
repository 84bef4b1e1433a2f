"""safetensors files, read in place: a JSON header with names, dtypes, shapes and offsets, then the bytes.

Layout: https://github.com/huggingface/safetensors#format. The file is not read with the library, because a
file that is refused must be refused before torch is imported, and in little memory.
"""

import hashlib
import json
import math
from typing import Any

from consistune.errors import UserError
from consistune.interop.files import MAX_NAME, MAX_TENSORS, Checkpoint, CheckpointFile
from consistune.interop.records import MAX_DIMENSIONS, Storage, TensorRecord

MAX_HEADER = 1 << 20
"""Bytes. A published network's header has 60 kB; parsed JSON takes up to thirty times its text."""
DTYPES = {
    "F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}  # fmt: skip
DIGEST = "weights_sha256"
"""The card's key in an export, for the bytes of the tensors (`nn.store.DIGEST`, without torch)."""
CONFIG_KEY, OLD_CONFIG_KEY = "consistune", "sct"
"""The header's metadata under which our exports keep the model's configuration; 0.1.0 wrote the old one."""


def read_safetensors(file: CheckpointFile) -> Checkpoint:
    """A state dict, and the model's configuration where the file is our export.

    Raises UserError for a malformed header, and unless the tensors fill the file without gap or overlap.
    """
    where = str(file.path)
    size = int.from_bytes(file.data[:8], "little")
    if size > min(MAX_HEADER, len(file.data) - 8):
        raise UserError(f"a header of {size} bytes in a file of {len(file.data)}", where)
    header = _json(bytes(file.data[8 : 8 + size]), where)
    metadata = header.pop("__metadata__", {})
    if not header or len(header) > MAX_TENSORS or type(metadata) is not dict:
        raise UserError(f"the header names {len(header)} tensors", where)
    body, position = file.data[8 + size :], 0
    tensors = {}
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1], item[0], where)):
        start, stop = _offsets(entry, name, where)
        if start != position or stop > len(body) or len(name) > MAX_NAME:
            raise UserError(f"tensor {name[:80]!a} lies outside the file, or over another", where)
        tensors[name] = _record(entry, body[start:stop], name, where)
        position = stop
    if position != len(body):
        raise UserError(f"{len(body) - position} bytes belong to no tensor", where)
    config = metadata.get(CONFIG_KEY, metadata.get(OLD_CONFIG_KEY, "{}"))
    if type(config) is not str:
        raise UserError("the header's configuration is not text", where)
    options = _json(config.encode("utf-8", "replace"), where)
    meta = options.get("meta")
    digest = meta.pop(DIGEST, None) if type(meta) is dict else None
    if digest is not None and digest != tensors_digest(file.data):
        raise UserError(
            "the weights are damaged: their SHA-256 is not that in the header", where, "copy it again"
        )
    in_order = {name: tensors[name] for name in header}
    return Checkpoint(file, "safetensors", in_order, options=options)


def tensors_digest(data: memoryview) -> str:
    """SHA-256 of what follows the header in a safetensors file."""
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def _json(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError("the header is not JSON", where) from error
    if type(value) is not dict:
        raise UserError("the header is not a JSON object", where)
    return value


def _offsets(entry: Any, name: str, where: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if type(entry) is dict else None
    if type(offsets) is list and len(offsets) == 2 and all(type(n) is int for n in offsets):
        start, stop = offsets
        if 0 <= start <= stop:
            return start, stop
    raise UserError(f"tensor {name[:80]!a} has no valid offsets in the file", where)


def _record(entry: dict[str, Any], data: memoryview, name: str, where: str) -> TensorRecord:
    shape, code = entry.get("shape"), entry.get("dtype")
    if type(code) is not str or code not in DTYPES:
        raise UserError(f"tensor {name[:80]!a} has none of the types {', '.join(DTYPES)}", where)
    dtype, itemsize = DTYPES[code]
    sizes = shape if type(shape) is list and len(shape) <= MAX_DIMENSIONS else [-1]
    if any(type(n) is not int or n < 0 for n in sizes) or math.prod(sizes) * itemsize != len(data):
        raise UserError(f"tensor {name[:80]!a} has bytes that do not fit its shape", where)
    stride = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return TensorRecord(Storage(dtype, math.prod(sizes), data), 0, tuple(sizes), tuple(stride))
