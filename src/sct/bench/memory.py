"""The peak memory of a training step, ours and the plain loop's, each in a process of its own.

python -m sct.bench.memory {ours,plain} PRESET BATCH PRECISION     # prints bytes
"""

import sys
from typing import Any

import torch

from sct.bench import training
from sct.bench.timing import in_a_process, peak_bytes
from sct.bench.workload import Workload

STEPS = 2
"""The optimizer's state is there from the second step on."""


def against_plain(workload: Workload, precisions: tuple[str, ...] = ("fp32", "bf16")) -> dict[str, Any]:
    """Peak bytes above an idle process's, of the plain loop and of ours in each precision."""
    peaks = {
        name: int(in_a_process("sct.bench.memory", side, workload.preset, str(workload.batch), word))
        for name, side, word in (("plain", "plain", "fp32"), *((p, "ours", p) for p in precisions))
    }
    ratios = {word: round(peaks[word] / peaks["plain"], 4) for word in precisions}
    return {"batch": workload.batch, "bytes": peaks, "share of the plain loop's": ratios}


def main() -> None:
    side, preset, batch, word = sys.argv[1:]
    torch.set_num_threads(1)
    workload = Workload(preset, int(batch))
    before = peak_bytes()
    step = training.our_step(workload, word) if side == "ours" else training.plain_step(workload)  # type: ignore[arg-type]
    for _ in range(STEPS):
        step()
    print(peak_bytes() - before)


if __name__ == "__main__":
    main()
