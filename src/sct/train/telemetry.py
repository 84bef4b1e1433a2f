"""What is written down of a run every `log_images`: to metrics.jsonl and to the trackers."""

import time
from collections.abc import Callable
from typing import Any

import torch

from sct.memory import peak_bytes
from sct.train.loop import StepReport, Trainer
from sct.train.statistics import means

GIB = 2**30


class Telemetry:
    """Loss, rate, gradient, speed, memory, and the loss by noise level since the last line."""

    def __init__(self, trainer: Trainer, log: Callable[[dict[str, Any]], None], boards: list[Any]) -> None:
        self.trainer, self.log, self.boards = trainer, log, boards
        self.began, self.images_then = time.perf_counter(), trainer.images

    def write(self, report: StepReport) -> None:
        """A line; the loss by t begins anew."""
        now = time.perf_counter()
        speed = (report.images - self.images_then) / (now - self.began)
        self.began, self.images_then = now, report.images
        self.record(
            self.trainer,
            {
                "loss": report.loss,
                "learning_rate": report.learning_rate,
                "gradient_norm": report.gradient_norm,
                "nonfinite_total": report.nonfinite_total,
                "images_per_second": speed,
                "peak_memory_gib": peak_memory_gib(self.trainer.device),
                **{f"loss/{name}": value for name, value in means(self.trainer.by_time).items()},
            },
        )
        self.trainer.by_time.zero_()

    def record(self, trainer: Trainer, scalars: dict[str, float]) -> None:
        """Numbers of this moment of training."""
        self.log({"images": trainer.images, "step": trainer.step, **scalars})
        named = {name if "/" in name else f"train/{name}": value for name, value in scalars.items()}
        for board in self.boards:
            board.log(named, step=trainer.images)


def peak_memory_gib(device: torch.device) -> float:
    """The most that this process ever held: of the card's memory, or on a CPU of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return peak_bytes() / GIB
