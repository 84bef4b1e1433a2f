"""openai/consistency_models' state dicts under the names of EDM's ADM network (openai-cm §7.1).

The network is the same. The names differ, and so do the order of qkv's rows and the class embedding, which is
a table there and a linear layer here.
"""

import re
from collections.abc import Collection
from dataclasses import replace

from consistune.errors import UserError
from consistune.interop.files import Checkpoint
from consistune.interop.records import TensorRecord

LOWEST_SIDE = 8
"""Resolution of the lowest level: 64 with the four levels for ImageNet, 256 with the six for LSUN."""
HEAD_CHANNELS = 64
"""Channels of an attention head."""
LAYERS = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
    "norm": "norm2",
    "qkv": "qkv",
    "proj_out": "proj",
}
"""Names within a residual block, and within its attention."""
OUTER = {
    "time_embed.0": "map_layer0",
    "time_embed.2": "map_layer1",
    "label_emb": "map_label",
    "out.0": "out_norm",
    "out.2": "out_conv",
}
"""Names of the layers outside the blocks."""
BLOCK = re.compile(r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.(\d+)\.(.+)\.(weight|bias)")


def is_consistency_model(names: Collection[str]) -> bool:
    return "time_embed.0.weight" in names and "input_blocks.0.0.weight" in names


def to_adm(checkpoint: Checkpoint) -> Checkpoint:
    """The same weights under ADM's names. `weights.build_model` reorders the rows of qkv.

    Raises UserError for unknown names, and for a network that ADM cannot be: LSUN's has no scale-shift norm.
    """
    where, tensors = checkpoint.where, checkpoint.tensors
    blocks = _block_names(tensors.keys(), where)
    renamed: dict[str, TensorRecord] = {}
    for name, record in tensors.items():
        new = f"model.{_translate(name, blocks, where)}"
        if new in renamed:
            raise UserError(f"two tensors would be {new!a}", where)
        if ".qkv." in new and (not record.shape or record.shape[0] % (3 * HEAD_CHANNELS)):
            raise UserError(f"{name[:80]!a} has no heads of {HEAD_CHANNELS} channels", where)
        if new == "model.map_label.weight":
            record = replace(record, shape=record.shape[::-1], stride=record.stride[::-1])
        renamed[new] = record
    for name, record in renamed.items():
        norm = renamed.get(name.replace("affine", "norm1"))
        if name.endswith("affine.bias") and norm is not None and record.numel != 2 * norm.numel:
            raise UserError("consistune has no network without scale-shift norm (LSUN's)", where)
    return replace(checkpoint, tensors=renamed, format="consistency-model state dict (.pt)", origin="CM")


def _block_names(names: Collection[str], where: str) -> dict[str, str]:
    """ "input_blocks.4" → "enc.32x32_down", …; a level's last output block also holds the next level's up."""
    inputs = _count(names, "input_blocks")
    outputs = _count(names, "output_blocks")
    ends = [i for i in range(outputs) if _up_part(names, i) is not None]
    levels = len(ends) + 1
    blocks = outputs // levels - 1
    complete = inputs == outputs == levels * (blocks + 1) and blocks > 0
    if not complete or levels > 8 or ends != [(n + 1) * (blocks + 1) - 1 for n in range(levels - 1)]:
        raise UserError(f"{inputs} input and {outputs} output blocks in {levels} levels do not fit", where)
    sides = [LOWEST_SIDE << (levels - 1 - level) for level in range(levels)]
    ours = {"input_blocks.0": f"enc.{sides[0]}x{sides[0]}_conv"}
    for index in range(1, inputs):
        level, block = divmod(index, blocks + 1)
        kind = f"block{block - 1}" if block else "down"
        ours[f"input_blocks.{index}"] = f"enc.{sides[level]}x{sides[level]}_{kind}"
    for index in range(outputs):
        level, block = divmod(index, blocks + 1)
        side = sides[levels - 1 - level]
        ours[f"output_blocks.{index}"] = f"dec.{side}x{side}_block{block}"
        up = _up_part(names, index)
        if up is not None:
            ours[f"output_blocks.{index}.{up}"] = f"dec.{2 * side}x{2 * side}_up"
    lowest = f"dec.{sides[-1]}x{sides[-1]}"
    middle = ("in0", "in0", "in1")
    return ours | {f"middle_block.{part}": f"{lowest}_{name}" for part, name in enumerate(middle)}


def _count(names: Collection[str], stem: str) -> int:
    """How many blocks there are, numbered without a gap; else −1."""
    numbers = {name.split(".")[1] for name in names if name.startswith(stem + ".")}
    return len(numbers) if numbers == {str(i) for i in range(len(numbers))} else -1


def _up_part(names: Collection[str], index: int) -> int | None:
    """Which part of an output block doubles the resolution; None where it has none."""
    return next((p for p in (1, 2) if f"output_blocks.{index}.{p}.in_layers.0.weight" in names), None)


def _translate(name: str, blocks: dict[str, str], where: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if name == "label_emb.weight" or (stem in OUTER and leaf in ("weight", "bias") and stem != "label_emb"):
        return f"{OUTER[stem]}.{leaf}"
    if stem == "input_blocks.0.0":
        return f"{blocks['input_blocks.0']}.{leaf}"
    match = BLOCK.fullmatch(name)
    if match:
        block, part, layer, leaf = match.groups()
        ours = blocks.get(f"{block}.{part}") or blocks.get(block)
        if ours and layer in LAYERS:
            return f"{ours}.{LAYERS[layer]}.{leaf}"
    raise UserError(f"unknown tensor {name[:80]!a} in a consistency-model state dict", where)
