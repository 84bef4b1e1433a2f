"""Which network and preconditioning a checkpoint is: its constructor's arguments, or its weights' shapes."""

import math
import re
from collections.abc import Mapping
from typing import Any

from consistune.errors import UserError
from consistune.interop.contents import Snapshot
from consistune.interop.records import TensorRecord

PRECONDITIONERS = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
    "ECMPrecond": "ect",
    "Precond": "edm2",
}
NETWORKS = {"SongUNet": "song", "DhariwalUNet": "adm"}
DEFAULT_NETWORK = {"edm": "adm", "vp": "song", "ve": "song", "iddpm": "adm", "ect": "adm"}
PRECOND_OPTIONS = {
    "edm": {"sigma_data", "sigma_min", "sigma_max"},
    "ect": {"sigma_data", "sigma_min", "sigma_max"},
    "vp": {"beta_d", "beta_min", "M", "epsilon_t"},
    "ve": {"sigma_min", "sigma_max"},
    "iddpm": {"C_1", "C_2", "M"},
    "edm2": {"sigma_data", "logvar_channels"},
}
MAX_LIST, MAX_INTEGER, MAX_WORD = 16, 100_000, 80
MAX_NOISE_LEVELS = 10_000
TENSORS_A_BLOCK = {"mlp": 6, "song": 20, "adm": 20, "edm2": 8}
"""The fewest that a block of the encoder brings, with the one that answers it in the decoder."""
MID_T = {"ect": 0.821, "edm2": 1.526}
"""Where ECT's two-step samplers renoise to (ect-recipe §4): CIFAR-10, ImageNet-64."""


def configuration(snapshot: Snapshot) -> dict[str, Any]:
    """{"network": …, "precond": …, "meta": …} for `nn.store.build`.

    Raises UserError for a class or an option that is not known, and for arguments so large that a network
    could not be in the file.
    """
    where = str(snapshot.source.path)
    if snapshot.class_name is None:
        config = dict(snapshot.options) or inferred(snapshot)
    else:
        config = _constructed(snapshot, where)
    _bound(config, len(snapshot.tensors), where)
    return config


def _constructed(snapshot: Snapshot, where: str) -> dict[str, Any]:
    options = dict(snapshot.options)
    kind = PRECONDITIONERS.get(str(snapshot.class_name))
    if kind is None:
        known = ", ".join(sorted(PRECONDITIONERS))
        raise UserError(f"unknown network class {snapshot.class_name!a}", where, f"known are: {known}")
    if kind == "edm2":
        network = "edm2"
    else:
        name = options.pop("model_type", None)
        network = DEFAULT_NETWORK[kind] if name is None else NETWORKS.get(str(name), "")
        if not network:
            raise UserError(f"unknown network {str(name)[:80]!a}", where)
    try:
        side, channels = options.pop("img_resolution"), options.pop("img_channels")
    except KeyError as error:
        raise UserError(f"the constructor's {error} is missing", where) from error
    options.pop("use_fp16", None)  # how it was run, not what it is
    precond = {key: options.pop(key) for key in sorted(PRECOND_OPTIONS[kind] & set(options))}
    if kind == "edm2" and not any(name.startswith("logvar_linear") for name in snapshot.tensors):
        precond["logvar_channels"] = 0  # ECT's ImageNet branch left the uncertainty head out
    if kind in ("edm", "ect") and precond.get("sigma_max") in (math.inf, None):
        precond.pop("sigma_max", None)  # ours have no upper end either
    if kind == "edm" and precond.get("sigma_min") == 0:
        del precond["sigma_min"]
    shape = {"image_shape": [channels, side, side], "num_classes": options.pop("label_dim", 0)}
    if kind == "iddpm" and type(channels) is int:
        options["out_channels"] = 2 * channels  # the second half, a variance, is not used
    return {
        "network": {"kind": network, **shape, **options},
        "precond": {"kind": kind, **precond},
        "meta": _meta(kind, snapshot),
    }


def _meta(kind: str, snapshot: Snapshot) -> dict[str, Any]:
    consistency = kind == "ect" or (kind == "edm2" and snapshot.keys == ("ema",))
    if consistency:
        return {"objective": "consistency", "mid_t": [MID_T[kind]]}
    return {"objective": "diffusion"}


def _bound(config: dict[str, Any], tensors: int, where: str) -> None:
    """Refuse what could not be the network of so many tensors, before anything is built from it."""
    network: Any = config.get("network")
    precond: Any = config.get("precond")
    if any(type(part) is not dict for part in (network, precond, config.get("meta", {}))):
        raise UserError("the configuration's network, preconditioning or meta is no object", where)
    for key, value in [*network.items(), *precond.items()]:
        values = value if type(value) is list else [value]
        limit = MAX_NOISE_LEVELS if key == "M" else MAX_INTEGER
        if len(values) > MAX_LIST or not all(_sound(item, limit) for item in values):
            raise UserError(f"{key[:80]!a} has an impossible value", where)
    blocks = network.get("num_blocks", network.get("blocks", 0))
    levels = network.get("channel_mult", [None])
    fewest = TENSORS_A_BLOCK.get(str(network.get("kind")), 1)
    if type(blocks) is not int or type(levels) is not list or fewest * blocks * len(levels) > tensors:
        raise UserError(f"{str(blocks)[:20]} blocks a level are more than the file has weights for", where)


def _sound(value: Any, limit: int) -> bool:
    if type(value) is int:
        return 0 <= value <= limit
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) is bool or (type(value) is str and len(value) <= MAX_WORD)


# --- from the weights' shapes, where nothing else is recorded -----------------------------------------

LEVEL_CONV = re.compile(r"(?:model|unet)\.enc\.(\d+)x\1_conv\.weight")
BLOCK = re.compile(r"(?:model|unet)\.enc\.(\d+)x\1_block(\d+)\.(conv1|conv_res1|qkv|attn_qkv)\.weight")


def inferred(snapshot: Snapshot) -> dict[str, Any]:
    """A configuration from names and shapes alone, with EDM's preconditioning (EDM2's for its networks).

    What shapes do not show is taken as published: dropout 0, EDM's scalings. `meta` says what was assumed.
    """
    tensors, where = snapshot.tensors, str(snapshot.source.path)
    first = next(((m, r) for m, r in ((LEVEL_CONV.fullmatch(n), r) for n, r in tensors.items()) if m), None)
    blocks = [(m, record) for m, record in ((BLOCK.fullmatch(n), r) for n, r in tensors.items()) if m]
    if first is None or not blocks or any(len(record.shape) != 4 for _, record in [first, *blocks]):
        raise UserError("the weights are of no network that consistune has", where, "their names are unknown")
    edm2 = "unet.out_gain" in tensors
    prefix = "unet." if edm2 else "model."
    top = int(first[0][1])
    widths = {int(m[1]): r.shape[0] for m, r in blocks if m[3] in ("conv1", "conv_res1") and m[2] == "0"}
    base = _base_width(tensors, prefix, edm2, first[1])
    if not base or len(widths) > MAX_LIST or any(width % base for width in widths.values()):
        raise UserError("the widths of the network's levels do not fit each other", where)
    network: dict[str, Any] = {
        "image_shape": [first[1].shape[1] - edm2, top, top],
        "num_classes": _columns(tensors, f"{prefix}{'emb_label' if edm2 else 'map_label'}.weight"),
        "model_channels": base,
        "channel_mult": [widths[side] // base for side in sorted(widths, reverse=True)],
        "num_blocks": 1 + max(int(m[2]) for m, _ in blocks),
        "attn_resolutions": sorted(
            {int(m[1]) for m, _ in blocks if m[3] in ("qkv", "attn_qkv")}, reverse=True
        ),
        "dropout": 0.0,
    }
    assumed = ["dropout 0"]
    if edm2:
        logvar = _columns(tensors, "logvar_linear.weight")
        precond: dict[str, Any] = {"kind": "edm2", "logvar_channels": logvar}
        network["kind"] = "edm2"
        assumed.append("heads of 64 channels")
    else:
        precond = {"kind": "edm"}
        assumed.append("EDM's preconditioning")
        network |= _song(tensors, base) if _is_song(tensors) else {"kind": "adm"}
        network["augment_dim"] = _columns(tensors, f"{prefix}map_augment.weight")
    meta = {"objective": "diffusion", "assumed": assumed}
    return {"network": network, "precond": precond, "meta": meta}


def _base_width(tensors: Mapping[str, TensorRecord], prefix: str, edm2: bool, conv: TensorRecord) -> int:
    if edm2 or not _is_song(tensors):
        embedding = tensors.get(f"{prefix}emb_noise.weight" if edm2 else f"{prefix}map_layer0.weight")
        return embedding.shape[-1] if embedding and embedding.shape else 0
    return conv.shape[0]  # Song's first convolution has the base width, whatever the first level's


def _is_song(tensors: Mapping[str, TensorRecord]) -> bool:
    return "model.out_conv.weight" not in tensors


def _song(tensors: Mapping[str, TensorRecord], base: int) -> dict[str, Any]:
    names = list(tensors)
    filters = {r.shape[-1] for n, r in tensors.items() if n.endswith("resample_filter") and r.shape}
    noise = _columns(tensors, "model.map_layer0.weight")
    encoder = "residual" if any("aux_residual" in n for n in names) else "standard"
    return {
        "kind": "song",
        "embedding_type": "fourier" if "model.map_noise.freqs" in tensors else "positional",
        "encoder_type": "skip" if any("aux_skip" in n for n in names) else encoder,
        "decoder_type": "skip" if sum("aux_conv.weight" in n for n in names) > 1 else "standard",
        "channel_mult_noise": noise // base,
        "resample_filter": [1, 3, 3, 1] if 4 in filters else [1, 1],
    }


def _columns(tensors: Mapping[str, TensorRecord], name: str) -> int:
    record = tensors.get(name)
    return record.shape[1] if record is not None and len(record.shape) == 2 else 0
