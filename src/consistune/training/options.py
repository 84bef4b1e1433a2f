"""The `train` section of a recipe. Durations and intervals are counted in training images."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Literal

import torch

from consistune.training.ema import Average, PowerFunction, SnapshotPrecision, as_average
from consistune.training.precision import UntilRatio, Word

CARD_PRECISION = UntilRatio(0.99, "bf16", "tf32")
"""The default on CUDA: as long as r/t is small enough for bf16's 8 bits to tell the two outputs apart."""
COMPILED_STEPS = 10_000
"""Compilation takes minutes, which a shorter run does not earn back."""
DURATIONS = ("every_images", "total_images", "reference_images", "warmup_images")
"""Keys of recipes, in training images, that follow the whole length of a training."""


def share_name(share: float) -> str:
    """The name of a snapshot at a share of training: "25%", "0.1%"."""
    return f"{100 * share:.6g}%"


@dataclass(frozen=True)
class TrainOptions:
    """How long, how many at a time, in what precision, and what is kept.

    Attributes:
        images: training images to see in all.
        batch: images a step, over all processes together.
        ema: averages, as a decay per step or an `Average`; the first is the model that is sampled and stored.
        seed: everything random follows from it.
        x_flip: mirror every other image at random; references are then mirrored too.
        label_dropout: share of the images whose label the model does not see, which trains its unlabelled
            branch (classifier-free guidance, 2207.12598); references still use the label.
        microbatch: the most images at a time on a process, gradients summed; None: its whole share.
        precision: what the networks compute in (`training.precision`); losses and references stay fp32. auto:
            on CUDA `CARD_PRECISION`, elsewhere fp32.
        clip_norm: gradients longer than this are shortened to it; None: never.
        compile: the networks' blocks through torch.compile; None: on CUDA, from COMPILED_STEPS steps on (in a
            recipe not where the objective takes derivatives).
            graphs: their kernels are also replayed as CUDA graphs.
        channels_last: their weights in that memory format; None: on CUDA.
        checkpointing: U-Net blocks keep only their inputs and compute the rest again for the gradient.
        shard: weights, gradients, optimizer and averages are split over the processes (FSDP2).
        checkpoint_images, log_images: how often, in images. keep: how many checkpoints are kept.
        evaluate_images: how often the averaged model is measured, if the run has a measure; None: never.
        snapshots: shares of training at which the averaged model is kept, for guidance by an earlier self.
        ema_snapshot_images: how often, in images, the power-function averages are kept, and again at the end,
            for averages of other lengths (`posthoc`); None: never.
        ema_snapshot_precision: what those are stored in.
        max_nonfinite: after this many non-finite steps in a row the run returns to its last good checkpoint.
        max_rollbacks: the number of such returns; one more ends the run.
        trackers: where the log goes beside metrics.jsonl.
    """

    images: int
    batch: int = 128
    ema: tuple[float | Average, ...] = (0.9999,)
    seed: int = 0
    x_flip: bool = False
    label_dropout: float = 0.0
    microbatch: int | None = None
    precision: Word | UntilRatio | Literal["auto"] = "auto"
    clip_norm: float | None = None
    compile: bool | Literal["graphs"] | None = None
    channels_last: bool | None = None
    checkpointing: bool = False
    shard: bool = False
    checkpoint_images: int = 100_000
    log_images: int = 6_400
    evaluate_images: int | None = None
    keep: int = 2
    snapshots: tuple[float, ...] = (0.25, 0.5, 0.75)
    ema_snapshot_images: int | None = None
    ema_snapshot_precision: SnapshotPrecision = "fp32"
    max_nonfinite: int = 20
    max_rollbacks: int = 3
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        counts = ("images", "batch", "checkpoint_images", "log_images", "keep", "max_nonfinite")
        for name in (*counts, "microbatch", "evaluate_images", "ema_snapshot_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.max_rollbacks < 0:
            raise ValueError(f"max_rollbacks must not be negative, got {self.max_rollbacks}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive, got {self.clip_norm}")
        if not self.ema:
            raise ValueError("ema must list at least one average")
        for average in self.ema:
            as_average(average)
        powers = [average for average in self.ema if isinstance(average, PowerFunction)]
        if self.ema_snapshot_images is not None and not powers:
            raise ValueError("ema_snapshot_images needs an average of kind power in ema")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        if any(not 0 < share < 1 for share in self.snapshots):
            raise ValueError(f"snapshots must list shares in (0, 1), got {list(self.snapshots)}")
        if len(set(map(share_name, self.snapshots))) < len(self.snapshots):
            raise ValueError(f"snapshots must list different shares, got {list(self.snapshots)}")
        if self.ema_snapshot_images is None and self.ema_snapshot_precision != "fp32":
            raise ValueError("ema_snapshot_precision has no effect without ema_snapshot_images")
        if self.shard and self.precision == "fp16":
            raise ValueError("shard and precision fp16 do not go together: use bf16")

    def on(self, device: torch.device) -> "TrainOptions":
        """The same with what is left open decided for a device."""
        card = device.type == "cuda"
        precision = self.precision
        if precision == "auto":
            precision = "fp32" if not card else CARD_PRECISION if torch.cuda.is_bf16_supported() else "tf32"
        long = self.images >= COMPILED_STEPS * self.batch
        compiled = card and long and find_spec("triton") is not None
        return replace(
            self,
            precision=precision,
            compile=compiled if self.compile is None else self.compile,
            channels_last=card if self.channels_last is None else self.channels_last,
        )
