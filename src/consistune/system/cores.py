"""The processor's cores, without importing PyTorch."""

import os


def cores() -> int:
    """The cores that this process may use; of the machine, where the system does not say it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
