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

from consistune.system.processes import Processes
from consistune.training.sharding import local

LOSS_FACTOR = 100.0
"""The recent losses' median may be this many times the earlier ones'. Losses of sound runs fall, or grow by a
small factor where the gap to the earlier time shrinks."""
SMALLEST_LOSS = 0.1
"""An earlier median below this counts as this: a loss with a learned uncertainty passes through 0."""
FIRST_LOSS_FACTOR = 3.0
"""The earlier median is taken to be at most this many times the first loss, which is that of the weights
before any update. So a run that explodes within its first steps is not compared with itself."""
WEIGHT_FACTOR = 100.0
"""The largest weight of a tensor may become this many times what it was at the last sound state, or this
number where it was below 1."""
RECENT, FIRST, EARLIER = 32, 8, 32
"""Steps in the recent median, steps in the first one, and sound medians that are remembered."""


@torch.no_grad()
def largest_weights(models: Iterable[nn.Module], processes: Processes) -> Tensor:
    """max |w| of each parameter and buffer, over all processes; inf where one is not finite. On the CPU."""
    maxima: list[Tensor] = []
    for model in models:
        for value in (*model.parameters(), *model.buffers()):
            part = local(value)
            if part.is_floating_point():
                largest = part.abs().amax() if part.numel() else part.new_zeros(())
                maxima.append(largest.float().nan_to_num(math.inf, math.inf))
    return processes.largest(torch.stack(maxima)).cpu() if maxima else torch.zeros(1)


class Soundness:
    """Follows the losses of a run, and says what is wrong with its state.

    The state is sound where all weights, averaged ones too, are finite and no tensor's largest is more than
    WEIGHT_FACTOR times as large as at the last sound state (or 1), and where the median of the last RECENT
    losses is finite and in size at most LOSS_FACTOR times the median of the earlier medians. The first of
    these is that of the first FIRST steps, or FIRST_LOSS_FACTOR times the first loss where that is less. A
    loss that is not finite counts as infinite: a few skipped steps, as fp16 has, are sound.
    """

    def __init__(self, models: Iterable[nn.Module], processes: Processes) -> None:
        self.models, self.processes = list(models), processes
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.medians: deque[float] = deque(maxlen=EARLIER)
        self.first = math.inf
        self.largest = largest_weights(self.models, processes).clamp(min=1.0)

    def follow(self, loss: float) -> None:
        """Take the loss of a step. Its size counts: losses with a learned uncertainty may be negative."""
        size = abs(loss) if math.isfinite(loss) else math.inf
        if self.first == math.inf and size > 0:
            self.first = FIRST_LOSS_FACTOR * size
        self.losses.append(size)
        if not self.medians and len(self.losses) == FIRST and math.isfinite(median(self.losses)):
            self.medians.append(min(median(self.losses), self.first))

    def went_back(self) -> None:
        """Go on from an earlier state; what is sound is still judged by what was before."""
        self.losses.clear()
        self.largest = largest_weights(self.models, self.processes).clamp(min=1.0)

    def fault(self, finished: bool = False) -> str | None:
        """What is wrong with the state; None: it is sound, and is what the next one is compared with.

        finished: the state is the run's result, which fewer than FIRST losses can refuse.
        """
        largest = largest_weights(self.models, self.processes)
        if not bool(largest.isfinite().all()):
            return "weights are not finite"
        grown = largest / self.largest
        if float(grown.max()) > WEIGHT_FACTOR:
            worst = int(grown.argmax())
            return (
                f"the largest weight of a tensor grew from {self.largest[worst]:.3g} to {largest[worst]:.3g}"
            )
        recent = median(self.losses) if self.losses else 0.0
        if not math.isfinite(recent) and (finished or len(self.losses) >= FIRST):
            return "most of the last losses are not finite"
        earlier = median(self.medians) if self.medians else self.first
        if math.isfinite(recent) and recent > LOSS_FACTOR * max(earlier, SMALLEST_LOSS):
            return f"the median loss grew from at most {earlier:.3g} to {recent:.3g}"
        if len(self.losses) >= FIRST:
            self.medians.append(recent)
        self.largest = largest.clamp(min=1.0)
        return None
