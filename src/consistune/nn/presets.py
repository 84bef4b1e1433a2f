"""The configurations of the published models, by name."""

from typing import Any

from consistune.nn import store
from consistune.nn.precond import Preconditioned

_DDPMPP = {"kind": "song", "augment_dim": 9}
_NCSNPP = {
    "kind": "song",
    "augment_dim": 9,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
_CIFAR = {"image_shape": (3, 32, 32), "channel_mult": (2, 2, 2), "dropout": 0.13}
_FFHQ = {"image_shape": (3, 64, 64), "channel_mult": (1, 2, 2, 2), "dropout": 0.05}
_IMAGENET = {"image_shape": (3, 64, 64), "num_classes": 1000}
_EDM, _EDM2 = {"kind": "edm"}, {"kind": "edm2"}


def _edm2(channels: int, dropout: float) -> dict[str, Any]:
    network = {**_IMAGENET, "kind": "edm2", "model_channels": channels, "dropout": dropout}
    return {"network": network, "precond": _EDM2}


PRESETS: dict[str, dict[str, Any]] = {
    "edm-cifar10-ddpmpp": {"network": {**_DDPMPP, **_CIFAR}, "precond": _EDM},
    "edm-cifar10-ncsnpp": {"network": {**_NCSNPP, **_CIFAR}, "precond": _EDM},
    "edm-ffhq64-ddpmpp": {"network": {**_DDPMPP, **_FFHQ}, "precond": _EDM},
    "edm-ffhq64-ncsnpp": {"network": {**_NCSNPP, **_FFHQ}, "precond": _EDM},
    "edm-imagenet64-adm": {"network": {**_IMAGENET, "kind": "adm"}, "precond": _EDM},
    "cm-imagenet64-adm": {
        "network": {**_IMAGENET, "kind": "adm", "dropout": 0.0},
        "precond": {"kind": "cm"},
    },
    "edm2-img64-xs": _edm2(128, 0.0),
    "edm2-img64-s": _edm2(192, 0.0),
    "edm2-img64-m": _edm2(256, 0.10),
    "edm2-img64-l": _edm2(320, 0.10),
    "edm2-img64-xl": _edm2(384, 0.10),
}
"""Configurations as `store.build` takes them. EDM: 2206.00364. EDM2: 2312.02696."""


def preset(name: str, **network: Any) -> Preconditioned:
    """A published model with fresh weights; `network` replaces arguments of its network (num_classes=10).

    Raises KeyError for a name that is not in PRESETS.
    """
    config = PRESETS[name]
    return store.build({**config, "network": {**config["network"], **network}}, name)
