"""What networks compute in during training. Noise levels, scalings, losses and references stay fp32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from consistune.nn.precond import Preconditioned

Word = Literal["fp32", "tf32", "bf16", "fp16"]
"""fp32: no TF32 on a GPU either. tf32: a GPU's products of fp32 numbers keep 10 bits of each factor."""
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """One precision for the networks of a run, their gradients' scale (fp16), and where it holds.

    A network that lists its `precisions` does the casts itself and keeps its embedding and norms in fp32; any
    other runs under autocast. The stored model's own precision is not touched.

    Attributes:
        scaler: multiplies the loss of fp16 so that small gradients do not vanish (1710.03740); else idle.
    """

    def __init__(self, word: Word, model: Preconditioned, device: torch.device) -> None:
        self.word, self.device = word, device
        known = getattr(model.network, "precisions", ("fp32",))
        self.autocast = HALF[word] if word in HALF and word not in known else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=word == "fp16")

    def prepare(self, model: Preconditioned) -> None:
        """Set the precision of a network of the run."""
        own = self.word in HALF and self.autocast is None
        model.precision = self.word if own else "fp32"  # type: ignore[assignment]

    @contextmanager
    def exactly(self, model: Preconditioned) -> Iterator[None]:
        """The context in which a network's passes run in fp32 and uncompiled: for a forward derivative."""
        own, autocast = model.precision, self.autocast
        model.precision, self.autocast = "fp32", None
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            model.precision, self.autocast = own, autocast

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The context in which a network's forward and backward passes run."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32
        matmul.allow_tf32 = cudnn.allow_tf32 = self.word == "tf32"
        try:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32 = before
