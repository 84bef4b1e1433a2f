"""The peak memory of a training step, ours and the plain loop's, each in a process of its own.

python -m consistune.bench.memory {ours,plain} PRESET BATCH PRECISION [checkpointing]     # prints bytes
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from consistune.bench import training
from consistune.bench.timing import in_a_process
from consistune.bench.workload import Workload
from consistune.system.host import peak_bytes

STEPS = 2
"""The optimizer's state is there from the second step on."""
PLAIN = "plain"
FORMS = {
    PLAIN: ("plain", "fp32"),
    "fp32": ("ours", "fp32"),
    "bf16": ("ours", "bf16"),
    "fp32, checkpointing": ("ours", "fp32", "checkpointing"),
    "bf16, checkpointing": ("ours", "bf16", "checkpointing"),
}
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""With this in the environment glibc gives a tensor's memory back as soon as it is freed, where it else keeps
holes for later: the peak is then that of the tensors in use."""


def against_plain(
    workload: Workload, forms: Iterable[str] = ("fp32", "bf16"), environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Peak bytes above an idle process's, of the plain loop and of ours in these FORMS."""
    peaks = {form: _peak(workload, form, environment or {}) for form in (PLAIN, *forms)}
    ratios = {form: round(peaks[form] / peaks[PLAIN], 4) for form in forms}
    return {"batch": workload.batch, "bytes": peaks, "share of the plain loop's": ratios}


def _peak(workload: Workload, form: str, environment: Mapping[str, str]) -> int:
    side, *how = FORMS[form]
    given = side, workload.preset, str(workload.batch), *how
    return int(in_a_process("consistune.bench.memory", *given, environment=environment))


def main() -> None:
    side, preset, batch, word, *checkpointing = sys.argv[1:]
    torch.set_num_threads(1)
    workload = Workload(preset, int(batch))
    before = peak_bytes()
    if side == "plain":
        step = training.plain_step(workload)
    else:
        step = training.our_step(workload, word, checkpointing=bool(checkpointing))  # type: ignore[arg-type]
    for _ in range(STEPS):
        step()
    print(peak_bytes() - before)


if __name__ == "__main__":
    main()
