"""Whether the state of a training is fit to be stored: finite weights that did not explode, and a sane loss.

A single step can destroy the weights while its loss, computed before the update, is finite. So the updated
weights are tested, and only where something is written: an additional wait for the device there, none a step.
"""

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

import torch
from torch import Tensor, nn

from consistune.errors import UserError
from consistune.system.processes import Processes
from consistune.train.sharding import local

LOSS_FACTOR = 100.0
"""The recent losses' median may be this many times the earlier ones'. Losses of sound runs fall, or grow by a
small factor where the gap to the earlier time shrinks."""
WEIGHT_FACTOR = 1e3
"""The largest weight may become this many times what it was at the last sound state."""
RECENT, FIRST, EARLIER = 32, 8, 32
"""Steps in the recent median, steps in the first one, and sound medians that are remembered."""


@torch.no_grad()
def largest_weight(models: Iterable[nn.Module], processes: Processes) -> float:
    """max |w| over all parameters and buffers, on all processes; inf where one is not finite."""
    maxima: list[Tensor] = []
    for model in models:
        for value in (*model.parameters(), *model.buffers()):
            part = local(value)
            if part.is_floating_point() and part.numel():
                maxima.append(part.abs().amax().float().nan_to_num(math.inf, math.inf))
    return processes.largest(float(torch.stack(maxima).max())) if maxima else 0.0


def check_start(model: nn.Module, where: str) -> None:
    """Raises UserError where a weight of the model that a training starts from is not finite."""
    for name, value in model.state_dict().items():
        if not bool(value.isfinite().all()):
            raise UserError(
                f"the model to start from has weights that are not finite, beginning with {name!r}",
                where,
                "start from a model whose training did not diverge",
            )


class Soundness:
    """Follows the losses of a run, and says what is wrong with its state.

    The state is sound where all weights, averaged ones too, are finite and at most WEIGHT_FACTOR times as
    large as at the last sound state (or 1), and where the median of the last RECENT losses is finite and at
    most LOSS_FACTOR times the median of the earlier medians. The first of these is that of the first FIRST
    steps. A loss that is not finite counts as infinite: a few skipped steps, as fp16 has, are sound.
    """

    def __init__(self, models: Iterable[nn.Module], processes: Processes) -> None:
        self.models, self.processes = list(models), processes
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.medians: deque[float] = deque(maxlen=EARLIER)
        self.largest = max(1.0, largest_weight(self.models, processes))

    def follow(self, loss: float) -> None:
        """Take the loss of a step."""
        self.losses.append(loss if math.isfinite(loss) else math.inf)
        if not self.medians and len(self.losses) == FIRST and math.isfinite(median(self.losses)):
            self.medians.append(median(self.losses))

    def fault(self) -> str | None:
        """What is wrong with the state; None: it is sound, and is what the next one is compared with."""
        largest = largest_weight(self.models, self.processes)
        if not math.isfinite(largest):
            return "weights are not finite"
        if largest > WEIGHT_FACTOR * self.largest:
            return f"the largest weight grew from {self.largest:.3g} to {largest:.3g}"
        if len(self.losses) >= FIRST:
            recent = median(self.losses)
            if not math.isfinite(recent):
                return "most of the last losses are not finite"
            if self.medians and recent > LOSS_FACTOR * max(median(self.medians), torch.finfo().tiny):
                return f"the median loss grew from {median(self.medians):.3g} to {recent:.3g}"
            self.medians.append(recent)
        self.largest = max(1.0, largest)
        return None
