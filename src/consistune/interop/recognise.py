"""Which network and preconditioning a checkpoint has, by its constructor's arguments or by its shapes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consistune.errors import UserError
from consistune.interop.files import Checkpoint
from consistune.interop.records import TensorRecord


@dataclass(frozen=True)
class PrecondClass:
    """An official preconditioner: our word for it, the network it has by default, its own arguments."""

    kind: str
    network: str
    options: tuple[str, ...]


SIGMAS = ("sigma_data", "sigma_min", "sigma_max")
PRECONDITIONERS = {
    "EDMPrecond": PrecondClass("edm", "adm", SIGMAS),
    "VPPrecond": PrecondClass("vp", "song", ("beta_d", "beta_min", "M", "epsilon_t")),
    "VEPrecond": PrecondClass("ve", "song", ("sigma_min", "sigma_max")),
    "iDDPMPrecond": PrecondClass("iddpm", "adm", ("C_1", "C_2", "M")),
    "ECMPrecond": PrecondClass("ect", "adm", SIGMAS),
    "Precond": PrecondClass("edm2", "edm2", ("sigma_data", "logvar_channels")),
}
"""By the class that the file names. To read another one, add a row."""
NETWORKS = {"SongUNet": "song", "DhariwalUNet": "adm"}
MAX_LIST, MAX_INTEGER, MAX_WORD = 16, 100_000, 80
MAX_NOISE_LEVELS = 10_000
TENSORS_PER_BLOCK = {"mlp": 6, "song": 20, "adm": 20, "edm2": 8}
"""The fewest tensors of an encoder's block and of the decoder's block that belongs to it."""
MID_T = {"ect": 0.821, "edm2": 1.526}
"""The second noise level of ECT's two-step samplers (ect-recipe §4): CIFAR-10, ImageNet-64."""


def configuration(checkpoint: Checkpoint) -> dict[str, Any]:
    """{"network": …, "precond": …, "meta": …} for `nn.store.build`.

    Raises UserError for an unknown class or option, and for arguments of a network that is too large to be
    in the file.
    """
    if checkpoint.class_name is not None:
        config = _from_arguments(checkpoint)
    else:
        config = dict(checkpoint.options) or _from_shapes(checkpoint)
    _limit(config, len(checkpoint.tensors), checkpoint.where)
    return config | _from_file_name(checkpoint.file.path.name) if checkpoint.origin == "CM" else config


def _from_file_name(name: str) -> dict[str, Any]:
    """openai/consistency_models' files do not say if they hold the diffusion teacher; their names do (§7)."""
    teacher = name.startswith("edm_")
    return {
        "precond": {"kind": "edm", "noise_scale": 1000.0} if teacher else {"kind": "cm"},
        "meta": {
            "objective": "diffusion" if teacher else "consistency",
            "assumed": [f"from the name {name[:80]!a}"],
        },
    }


def _from_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    where, options = checkpoint.where, dict(checkpoint.options)
    known = PRECONDITIONERS.get(str(checkpoint.class_name))
    if known is None:
        names = ", ".join(sorted(PRECONDITIONERS))
        raise UserError(f"unknown network class {checkpoint.class_name!a}", where, f"known are: {names}")
    kind, network = known.kind, known.network
    name = options.pop("model_type", None) if kind != "edm2" else None
    if name is not None:
        network = NETWORKS.get(str(name), "")
        if not network:
            raise UserError(f"unknown network {str(name)[:80]!a}", where)
    try:
        side, channels = options.pop("img_resolution"), options.pop("img_channels")
    except KeyError as error:
        raise UserError(f"the constructor's {error} is missing", where) from error
    options.pop("use_fp16", None)  # how the network was run, not what it is
    precond = {key: options.pop(key) for key in sorted(known.options) if key in options}
    if kind == "edm2" and not any(name.startswith("logvar_linear") for name in checkpoint.tensors):
        precond["logvar_channels"] = 0  # ECT's ImageNet branch has no uncertainty head
    if kind in ("edm", "ect") and precond.get("sigma_max") in (math.inf, None):
        precond.pop("sigma_max", None)  # our preconditioners have no upper limit either
    if kind == "edm" and precond.get("sigma_min") == 0:
        del precond["sigma_min"]
    shape = {"image_shape": [channels, side, side], "num_classes": options.pop("label_dim", 0)}
    if kind == "iddpm" and type(channels) is int:
        options["out_channels"] = 2 * channels  # the second half, a variance, is not used
    return {
        "network": {"kind": network, **shape, **options},
        "precond": {"kind": kind, **precond},
        "meta": _objective(kind, checkpoint),
    }


def _objective(kind: str, checkpoint: Checkpoint) -> dict[str, Any]:
    if kind == "ect" or (kind == "edm2" and checkpoint.keys == ("ema",)):
        return {"objective": "consistency", "mid_t": [MID_T[kind]]}
    return {"objective": "diffusion"}


def _limit(config: dict[str, Any], tensors: int, where: str) -> None:
    """Refuse a network that cannot have so few tensors, before anything is built from its configuration."""
    network: Any = config.get("network")
    precond: Any = config.get("precond")
    if any(type(part) is not dict for part in (network, precond, config.get("meta", {}))):
        raise UserError("the configuration's network, preconditioning or meta is no object", where)
    for key, value in [*network.items(), *precond.items()]:
        if key == "config" and network.get("kind") == "module":
            continue  # the arguments of the user's own class
        values = value if type(value) is list else [value]
        limit = MAX_NOISE_LEVELS if key == "M" else MAX_INTEGER
        if len(values) > MAX_LIST or not all(_is_plausible(item, limit) for item in values):
            raise UserError(f"{key[:80]!a} has an impossible value", where)
    blocks = network.get("num_blocks", network.get("blocks", 0))
    levels = network.get("channel_mult", [None])
    fewest = TENSORS_PER_BLOCK.get(str(network.get("kind")), 1)
    if type(blocks) is not int or type(levels) is not list or fewest * blocks * len(levels) > tensors:
        raise UserError(f"{str(blocks)[:20]} blocks a level are more than the file has weights for", where)


def _is_plausible(value: Any, limit: int) -> bool:
    if type(value) is int:
        return 0 <= value <= limit
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) is bool or (type(value) is str and len(value) <= MAX_WORD)


# --- from the weights' names and shapes, where the file says nothing else --------------------------------

LEVEL_CONV = re.compile(r"(?:model|unet)\.enc\.(\d+)x\1_conv\.weight")
BLOCK = re.compile(r"(?:model|unet)\.enc\.(\d+)x\1_block(\d+)\.(conv1|conv_res1|qkv|attn_qkv)\.weight")


def _from_shapes(checkpoint: Checkpoint) -> dict[str, Any]:
    """A configuration from names and shapes alone.

    What shapes do not show is taken as published: dropout 0, EDM's preconditioning (EDM2's for its networks).
    `meta["assumed"]` lists it.
    """
    tensors, where = checkpoint.tensors, checkpoint.where
    convs = [(m, record) for name, record in tensors.items() if (m := LEVEL_CONV.fullmatch(name))]
    blocks = [(m, record) for name, record in tensors.items() if (m := BLOCK.fullmatch(name))]
    if not convs or not blocks or any(len(record.shape) != 4 for _, record in [convs[0], *blocks]):
        raise UserError("the weights are of no network that consistune has", where, "their names are unknown")
    match, first_conv = convs[0]
    side, edm2 = int(match[1]), "unet.out_gain" in tensors
    widths = {int(m[1]): r.shape[0] for m, r in blocks if m[3] in ("conv1", "conv_res1") and m[2] == "0"}
    base = _base_width(tensors, edm2, first_conv)
    if not base or len(widths) > MAX_LIST or any(width % base for width in widths.values()):
        raise UserError("the widths of the network's levels do not fit each other", where)
    attention = {int(m[1]) for m, _ in blocks if m[3] in ("qkv", "attn_qkv")}
    network: dict[str, Any] = {
        "image_shape": [first_conv.shape[1] - edm2, side, side],  # EDM2 adds a channel of ones
        "num_classes": _columns(tensors, "unet.emb_label.weight" if edm2 else "model.map_label.weight"),
        "model_channels": base,
        "channel_mult": [widths[level] // base for level in sorted(widths, reverse=True)],
        "num_blocks": 1 + max(int(m[2]) for m, _ in blocks),
        "attn_resolutions": sorted(attention, reverse=True),
        "dropout": 0.0,
    }
    precond: dict[str, Any] = {"kind": "edm2" if edm2 else "edm"}
    if edm2:
        precond["logvar_channels"] = _columns(tensors, "logvar_linear.weight")
        network["kind"] = "edm2"
    else:
        network |= _song(tensors, base) if _is_song(tensors) else {"kind": "adm"}
        network["augment_dim"] = _columns(tensors, "model.map_augment.weight")
    assumed = ["dropout 0", "heads of 64 channels" if edm2 else "EDM's preconditioning"]
    meta = {"objective": "diffusion", "assumed": assumed}
    return {"network": network, "precond": precond, "meta": meta}


def _base_width(tensors: Mapping[str, TensorRecord], edm2: bool, first_conv: TensorRecord) -> int:
    """`model_channels`; 0 where it cannot be found."""
    if not edm2 and _is_song(tensors):
        return first_conv.shape[0]  # it has the base width, whatever the first level's
    embedding = tensors.get("unet.emb_noise.weight" if edm2 else "model.map_layer0.weight")
    return embedding.shape[-1] if embedding and embedding.shape else 0


def _is_song(tensors: Mapping[str, TensorRecord]) -> bool:
    return "model.out_conv.weight" not in tensors


def _song(tensors: Mapping[str, TensorRecord], base: int) -> dict[str, Any]:
    filters = {r.shape[-1] for n, r in tensors.items() if n.endswith("resample_filter") and r.shape}
    encoder = "residual" if any("aux_residual" in name for name in tensors) else "standard"
    return {
        "kind": "song",
        "embedding_type": "fourier" if "model.map_noise.freqs" in tensors else "positional",
        "encoder_type": "skip" if any("aux_skip" in name for name in tensors) else encoder,
        "decoder_type": "skip" if sum("aux_conv.weight" in name for name in tensors) > 1 else "standard",
        "channel_mult_noise": _columns(tensors, "model.map_layer0.weight") // base,
        "resample_filter": [1, 3, 3, 1] if 4 in filters else [1, 1],
    }


def _columns(tensors: Mapping[str, TensorRecord], name: str) -> int:
    """The number of a matrix's columns; 0 where there is no such matrix."""
    record = tensors.get(name)
    return record.shape[1] if record is not None and len(record.shape) == 2 else 0
