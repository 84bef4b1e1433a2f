"""A network of ours as a model of diffusers: its class in a folder that `consistune export` writes.

diffusers imports this module by name when it loads such a folder, and needs `ModelMixin` in it.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from consistune.nn import store


class Network(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """F(x [B, C, H, W], c_noise [B], labels [B]), as UNet2DModel is called, around a network of `nn.store`.

    Loaded in half precision it computes as torch.autocast does, since ours expect parameters of fp32.

    Args:
        network: its section of a configuration, {"kind": …}.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        self.inner: nn.Module = store.build({"network": network, "precond": {"kind": "edm"}}).network
        self.classes: int = network.get("num_classes", 0)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> Any:
        one_hot = None
        if self.classes:
            known = torch.arange(self.classes, device=sample.device)
            labels = torch.full((1,), -1).to(known) if class_labels is None else class_labels
            one_hot = (labels[:, None] == known).to(sample).expand(len(sample), -1)
        half = self.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(sample.device.type, self.dtype if half else None, enabled=half):
            return SimpleNamespace(sample=self.inner(sample, timestep, one_hot))
