"""Step time and memory at other batch sizes and on several devices, predicted from measured parts.

Every result is a prediction and named so; it belongs in no table of measurements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

BYTES_A_PARAMETER = 4
COPIES = 5
"""Of every parameter, fp32: the weight, its gradient, RAdam's two moments, the average."""


@dataclass(frozen=True)
class Measured:
    """A step on one device: `batch` images in `seconds`, at a peak of `bytes`."""

    batch: int
    seconds: float
    bytes: float


@dataclass(frozen=True)
class StepModel:
    """One device's step: seconds = fixed + an image's·b, bytes = fixed + an image's·b.

    What is fixed is a parameter's (casts, optimizer, averages), what grows an image's.
    """

    parameters: int
    fixed_seconds: float
    image_seconds: float
    fixed_bytes: float
    image_bytes: float

    @classmethod
    def fitted(cls, parameters: int, steps: Sequence[Measured]) -> "StepModel":
        """The least-squares lines through measured steps. Raises ValueError for a single batch size."""
        if len({step.batch for step in steps}) < 2:
            raise ValueError("a line needs steps at two batch sizes or more")
        batches = [float(step.batch) for step in steps]
        time = _line(batches, [step.seconds for step in steps])
        memory = _line(batches, [step.bytes for step in steps])
        return cls(parameters, *time, *memory)

    def seconds(
        self, batch: int, devices: int = 1, link: float = float("inf"), overlap: float = 0.0
    ) -> float:
        """A step of `batch` images in all on `devices`, each with its share.

        The gradients' ring all-reduce moves 2(N − 1)/N of their bytes over each `link` (bytes a second), of
        which a share `overlap` happens during the backward pass.
        """
        if devices < 1 or batch % devices:
            raise ValueError(f"{batch} images do not divide among {devices} devices")
        traffic = 2 * (devices - 1) / devices * BYTES_A_PARAMETER * self.parameters
        return self.fixed_seconds + self.image_seconds * batch / devices + (1 - overlap) * traffic / link

    def efficiency(self, batch: int, devices: int, link: float, overlap: float = 0.0) -> float:
        """One device's time over N times that of N devices: 1 is a perfect division of the work."""
        return self.seconds(batch) / (devices * self.seconds(batch, devices, link, overlap))

    def bytes(self, batch: int) -> float:
        """The peak on a device with `batch` images."""
        return self.fixed_bytes + self.image_bytes * batch

    def largest_batch(self, capacity: float) -> int:
        """The most images whose step fits in `capacity` bytes; 0: not even the weights do."""
        return max(0, int((capacity - self.fixed_bytes) // self.image_bytes))


def state_bytes(parameters: int, averages: int = 1, devices: int = 1) -> float:
    """Weights, gradients, moments and averages on one device, split over `devices` where they are sharded."""
    return (COPIES - 1 + averages) * BYTES_A_PARAMETER * parameters / devices


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Least squares: (intercept, slope)."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    return mean_y - slope * mean_x, slope
