"""Step time and memory at other batch sizes and on several devices, predicted from measured steps.

    python benchmarks/step_model.py STEPS.json --devices 1 8 --link 300e9 --memory 80e9

STEPS.json: {"parameters": P, "steps": [{"batch", "seconds", "bytes"}, …]}, measured on one device. The
results are predictions; do not mix them with measurements in a table.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

BYTES_PER_PARAMETER = 4
COPIES = 5
"""Copies of every parameter in fp32: the weight, its gradient, RAdam's two moments, the average."""


@dataclass(frozen=True)
class MeasuredStep:
    """A step on one device: `batch` images in `seconds`, at a peak of `bytes`."""

    batch: int
    seconds: float
    bytes: float


@dataclass(frozen=True)
class StepModel:
    """One device's step: seconds and bytes, each fixed + slope · batch.

    The fixed part comes from the parameters (casts, optimizer, averages), the slope from each image.
    """

    parameters: int
    fixed_seconds: float
    image_seconds: float
    fixed_bytes: float
    image_bytes: float

    @classmethod
    def fitted(cls, parameters: int, steps: Sequence[MeasuredStep]) -> "StepModel":
        """The least-squares lines through measured steps. Raises ValueError for a single batch size."""
        batches = [float(step.batch) for step in steps]
        if len(set(batches)) < 2:
            raise ValueError("a line needs steps at two batch sizes or more")
        time = linear_regression(batches, [step.seconds for step in steps])
        memory = linear_regression(batches, [step.bytes for step in steps])
        return cls(parameters, time.intercept, time.slope, memory.intercept, memory.slope)

    def seconds(self, batch: int, devices: int = 1, link: float = float("inf")) -> float:
        """Seconds of a step of `batch` images in total, divided equally among `devices`.

        The gradients' ring all-reduce moves 2(N − 1)/N of their bytes over each `link` (bytes per second),
        after the backward pass.
        """
        if devices < 1 or batch % devices:
            raise ValueError(f"{batch} images do not divide among {devices} devices")
        traffic = 2 * (devices - 1) / devices * BYTES_PER_PARAMETER * self.parameters
        return self.fixed_seconds + self.image_seconds * batch / devices + traffic / link

    def efficiency(self, batch: int, devices: int, link: float) -> float:
        """One device's time over N times that of N devices; 1 is perfect scaling."""
        return self.seconds(batch) / (devices * self.seconds(batch, devices, link))

    def bytes(self, batch: int) -> float:
        """The peak on a device with `batch` images."""
        return self.fixed_bytes + self.image_bytes * batch

    def largest_batch(self, capacity: float) -> int:
        """The largest batch whose step fits in `capacity` bytes; 0 where not even the weights fit."""
        return max(0, int((capacity - self.fixed_bytes) // self.image_bytes))


def state_bytes(parameters: int, averages: int = 1, devices: int = 1) -> float:
    """Weights, gradients, moments and averages on one device, where they are sharded over `devices`."""
    return (COPIES - 1 + averages) * BYTES_PER_PARAMETER * parameters / devices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--link", type=float, default=300e9, help="bytes per second between two devices")
    parser.add_argument("--memory", type=float, default=80e9, help="bytes of a device")
    given = parser.parse_args()
    record = json.loads(given.file.read_text())
    model = StepModel.fitted(record["parameters"], [MeasuredStep(**step) for step in record["steps"]])
    batch = max(step["batch"] for step in record["steps"])
    devices = {
        n: {
            "images a second": n * batch / model.seconds(n * batch, n, given.link),
            "efficiency": model.efficiency(n * batch, n, given.link),
        }
        for n in given.devices
    }
    about = {"these are": "predictions", "largest batch on a device": model.largest_batch(given.memory)}
    print(
        json.dumps(about | {"state, GB": state_bytes(model.parameters) / 1e9, "devices": devices}, indent=1)
    )


if __name__ == "__main__":
    main()
