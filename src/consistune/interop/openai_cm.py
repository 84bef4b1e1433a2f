"""openai/consistency_models' state dicts under the names of EDM's ADM network (openai-cm §7.1).

The network is the same; what differs is the names, the order of the rows of qkv, and the class embedding,
which is a table there and a linear layer here.
"""

import re
from collections.abc import Collection
from dataclasses import replace

from consistune.errors import UserError
from consistune.interop.contents import Snapshot
from consistune.interop.records import TensorRecord

SMALLEST_SIDE = 8
"""Resolution of the lowest level: 64 with the four levels for ImageNet, 256 with the six for LSUN."""
HEAD = 64
"""Channels of an attention head."""
RES_BLOCK = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
TOP = {
    "time_embed.0": "map_layer0",
    "time_embed.2": "map_layer1",
    "label_emb": "map_label",
    "out.0": "out_norm",
    "out.2": "out_conv",
}
BLOCK = re.compile(r"(input_blocks\.\d+|middle_block|output_blocks\.\d+)\.(\d+)\.(.+)\.(weight|bias)")


def is_consistency_model(names: Collection[str]) -> bool:
    return "time_embed.0.weight" in names and "input_blocks.0.0.weight" in names


def to_adm(snapshot: Snapshot) -> Snapshot:
    """The same weights under ADM's names; the rows of qkv stay in their order (`weights.build_model` asks).

    Raises UserError for a network that ADM is not: LSUN's has no scale-shift norm.
    """
    where = str(snapshot.source.path)
    names = snapshot.tensors.keys()
    places = _places(names, where)
    renamed: dict[str, TensorRecord] = {}
    for name, record in snapshot.tensors.items():
        new = f"model.{_translate(name, places, where)}"
        if new in renamed:
            raise UserError(f"two tensors would be {new!a}", where)
        if ".qkv." in new and (not record.shape or record.shape[0] % (3 * HEAD)):
            raise UserError(f"{name[:80]!a} has no heads of {HEAD} channels", where)
        if new == "model.map_label.weight":
            record = replace(record, shape=record.shape[::-1], stride=record.stride[::-1])
        renamed[new] = record
    for name, record in renamed.items():
        out = renamed.get(name.replace("affine", "norm1"))
        if name.endswith("affine.bias") and out is not None and record.numel != 2 * out.numel:
            raise UserError(
                "a network without scale-shift norm (LSUN's) is not one that consistune has", where
            )
    return replace(snapshot, tensors=renamed, kind="consistency-model state dict (.pt)")


def _places(names: Collection[str], where: str) -> dict[str, str]:
    """ "input_blocks.4" → "enc.32x32_down", …; the level's last output block also holds the next one's up."""
    inputs = _count(names, "input_blocks")
    outputs = _count(names, "output_blocks")
    ends = [i for i in range(outputs) if _up_part(names, i) is not None]
    levels = len(ends) + 1
    blocks = outputs // levels - 1
    whole = inputs == outputs == levels * (blocks + 1) and blocks > 0
    if not whole or levels > 8 or ends != [(n + 1) * (blocks + 1) - 1 for n in range(levels - 1)]:
        raise UserError(f"{inputs} input and {outputs} output blocks in {levels} levels do not fit", where)
    side = [SMALLEST_SIDE << (levels - 1 - level) for level in range(levels)]
    places = {"input_blocks.0": f"enc.{side[0]}x{side[0]}_conv"}
    for index in range(1, inputs):
        level, block = divmod(index, blocks + 1)
        kind = f"block{block - 1}" if block else "down"
        places[f"input_blocks.{index}"] = f"enc.{side[level]}x{side[level]}_{kind}"
    for index in range(outputs):
        level, block = divmod(index, blocks + 1)
        r = side[levels - 1 - level]
        places[f"output_blocks.{index}"] = f"dec.{r}x{r}_block{block}"
        up = _up_part(names, index)
        if up is not None:
            places[f"output_blocks.{index}.{up}"] = f"dec.{2 * r}x{2 * r}_up"
    low = f"dec.{side[-1]}x{side[-1]}"
    return places | {
        "middle_block.0": f"{low}_in0",
        "middle_block.1": f"{low}_in0",
        "middle_block.2": f"{low}_in1",
    }


def _count(names: Collection[str], stem: str) -> int:
    found = {name.split(".")[1] for name in names if name.startswith(stem + ".")}
    return len(found) if found == {str(i) for i in range(len(found))} else -1


def _up_part(names: Collection[str], index: int) -> int | None:
    return next((p for p in (1, 2) if f"output_blocks.{index}.{p}.in_layers.0.weight" in names), None)


def _translate(name: str, places: dict[str, str], where: str) -> str:
    stem, _, leaf = name.rpartition(".")
    if name == "label_emb.weight" or (stem in TOP and leaf in ("weight", "bias") and stem != "label_emb"):
        return f"{TOP[stem]}.{leaf}"
    if stem == "input_blocks.0.0":
        return f"{places['input_blocks.0']}.{leaf}"
    match = BLOCK.fullmatch(name)
    if match:
        block, part, layer, leaf = match.groups()
        place = places.get(f"{block}.{part}") or places.get(block)
        inner = RES_BLOCK.get(layer) or ATTENTION.get(layer)
        if place and inner:
            return f"{place}.{inner}.{leaf}"
    raise UserError(f"unknown tensor {name[:80]!a} in a consistency-model state dict", where)
