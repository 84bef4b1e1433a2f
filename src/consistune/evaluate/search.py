"""The best value of one setting of the sampler: golden section on few samples, confirmed on all."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Setting = Literal["mid-t", "eta", "omega"]
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Range:
    """Where a setting is searched, and whether steps are equal in its logarithm."""

    low: float
    high: float
    log: bool


RANGES: dict[Setting, Range] = {
    "mid-t": Range(0.1, 20.0, True),
    "eta": Range(0.0, 1.0, False),
    "omega": Range(1.0, 3.0, False),
}
POINTS = 6
"""Of the coarse grid, which finds the valley that the golden section then narrows."""


def golden_section(
    loss: Callable[[float], float], within: Range, evaluations: int
) -> tuple[float, list[tuple[float, float]]]:
    """The value with the least loss, and every (value, loss) in the order of the values.

    A grid of six points first, so that an edge or the wrong one of two valleys is not taken; then the bracket
    around its best point is narrowed by 0.618 an evaluation (Kiefer 1953). The loss must be a fixed function:
    the same seeds every time.
    """
    to, back = (math.log, math.exp) if within.log else (float, float)
    low, high = to(within.low), to(within.high)
    seen: dict[float, float] = {}

    def at(u: float) -> float:
        value = min(max(back(u), within.low), within.high)
        if value not in seen:
            seen[value] = loss(value)
        return seen[value]

    grid = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    best = min(range(POINTS), key=lambda i: at(grid[i]))
    a, b = grid[max(best - 1, 0)], grid[min(best + 1, POINTS - 1)]
    x, y = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    while len(seen) < evaluations:
        if at(x) <= at(y):
            b, y = y, x
            x = b - GOLDEN * (b - a)
        else:
            a, x = x, y
            y = a + GOLDEN * (b - a)
    curve = sorted(seen.items())
    return min(curve, key=lambda point: point[1])[0], curve
