"""What networks compute in during training. Noise levels, scalings, losses and references stay fp32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from consistune.core.objectives import Objective
from consistune.core.types import Conditioning, Progress
from consistune.nn.layers import set_product_dtype
from consistune.nn.precond import Preconditioned

Word = Literal["fp32", "tf32", "bf16", "bf16-inner", "fp16"]
"""fp32: no TF32 on a GPU either. tf32: a GPU's products of fp32 numbers keep 10 bits of each factor. So do
those that bf16 and fp16 leave in fp32. bf16-inner: as bf16, but a U-Net's `outer_layers` stay in fp32."""
HALF = {"bf16": torch.bfloat16, "bf16-inner": torch.bfloat16, "fp16": torch.float16}

RATIO_SAMPLE = 256
"""Transitions whose median tells how near r has come to t."""
FIRST_SCALE = 2.0**10
"""torch's own first scale of fp16, 2¹⁶, overflows: a loss is weighted by 1/(t − r), up to some thousands."""


@dataclass(frozen=True)
class UntilRatio:
    """One precision until the typical r/t of the transitions reaches a ratio, then another.

    As r → t the difference of the two outputs comes down to the rounding of each.

    Attributes:
        until_ratio: of the noise-to-signal ratios at r and t.
        first, then: before and after.
    """

    until_ratio: float
    first: Literal["tf32", "bf16", "bf16-inner"] = "bf16"
    then: Literal["fp32", "tf32"] = "fp32"

    def __post_init__(self) -> None:
        if not 0 < self.until_ratio < 1:
            raise ValueError(f"until_ratio must lie in (0, 1), got {self.until_ratio}")

    def __str__(self) -> str:
        return f"{self.first} until r/t = {self.until_ratio:g}, then {self.then}"

    def at(self, objective: Objective, progress: Progress) -> Word:
        """The precision at a point of training; an objective without pairs of times stays in the first."""
        pairs = getattr(objective, "pairs", None)
        if pairs is None:
            return self.first
        times = pairs.sample(RATIO_SAMPLE, progress, torch.Generator().manual_seed(0))
        ratio = objective.schedule.noise_to_signal(times.r) / objective.schedule.noise_to_signal(times.t)
        return self.then if float(ratio.median()) >= self.until_ratio else self.first


class Precision:
    """The precision of the networks of a run, their gradients' scale (fp16), and where it holds.

    A network that lists its `precisions` does the casts itself and keeps its embedding and norms in fp32; any
    other runs under autocast. The stored model's own precision is not touched.

    Attributes:
        scaler: multiplies the loss of fp16 so that small gradients do not vanish (1710.03740); else idle.
    """

    def __init__(self, word: Word, model: Preconditioned, device: torch.device) -> None:
        self.word, self.device = word, device
        self.known = getattr(model.network, "precisions", ("fp32",))
        self.scaler = torch.amp.GradScaler(device.type, init_scale=FIRST_SCALE, enabled=word == "fp16")

    @property
    def half(self) -> str:
        """The word without the exception of `outer_layers`."""
        return self.word.removesuffix("-inner")

    @property
    def autocast(self) -> torch.dtype | None:
        """What the network's passes are cast to, where it does not do that itself."""
        return HALF[self.word] if self.word in HALF and self.half not in self.known else None

    def prepare(self, model: Preconditioned) -> None:
        """Set the precision of a network of the run."""
        own = self.word in HALF and self.autocast is None
        model.precision = self.half if own else "fp32"  # type: ignore[assignment]
        if self.half != self.word:
            for part in getattr(model.network, "outer_layers", ()):
                set_product_dtype(part, None)

    def around(self, model: Preconditioned, channels_last: bool = False) -> "Passes":
        """The model as a denoiser whose passes run in the precision; see `prepare`."""
        return Passes(model, self, channels_last)

    @contextmanager
    def exactly(self, model: Preconditioned) -> Iterator[None]:
        """The context in which a network's passes run in fp32 and uncompiled: for a forward derivative."""
        word = self.word
        model.precision, self.word = "fp32", "fp32"
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self.word = word
            self.prepare(model)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The context in which a network's forward and backward passes run."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        matmul.allow_tf32 = cudnn.allow_tf32 = self.word != "fp32"
        cudnn.benchmark = True  # a run's shapes do not change: the fastest convolutions are looked for once
        try:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@dataclass(frozen=True)
class Passes:
    """A model's passes in a run's precision, and its derivatives in fp32.

    channels_last: the images are put into that memory format.
    """

    model: Preconditioned
    precision: Precision
    channels_last: bool = False

    @property
    def two_times(self) -> bool:
        return self.model.two_times

    def __call__(
        self, x_t: Tensor, t: Tensor, condition: Conditioning = None, s: Tensor | None = None
    ) -> Tensor:
        if self.channels_last:
            x_t = x_t.to(memory_format=torch.channels_last)
        with self.precision.scope():
            return self.model(x_t, t, condition, s)

    def exactly(self) -> AbstractContextManager[None]:
        """Where derivatives of the model are taken (`core.derivative`)."""
        return self.precision.exactly(self.model)
