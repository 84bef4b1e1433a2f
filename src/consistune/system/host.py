"""The machine: its description, the peak memory of this process, and environment variables."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from consistune.errors import UserError

OLD_PREFIX, PREFIX = "SCT_", "CONSISTUNE_"


def variable(name: str) -> str | None:
    """The value of $CONSISTUNE_NAME, or with a warning of version 0.1.0's $SCT_NAME; None: unset or empty."""
    value = os.environ.get(PREFIX + name)
    if value or OLD_PREFIX + name not in os.environ:
        return value or None
    print(f"warning: {OLD_PREFIX}{name} is now called {PREFIX}{name}", file=sys.stderr)
    return os.environ[OLD_PREFIX + name] or None


def package_version() -> str:
    """The version of the installed package; "unknown" where it runs without being installed."""
    try:
        return version("consistune")
    except PackageNotFoundError:
        return "unknown"


def machine() -> dict[str, Any]:
    """Processor and its instructions, cores, torch's threads, CUDA devices, versions of torch, Python, OS."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _processor() -> str:
    """Its name on Linux, elsewhere its kind."""
    lines = Path("/proc/cpuinfo")
    if lines.is_file():
        for line in lines.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """The machine's memory; without a limit where the system does not say it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


RSS_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in the unit of ru_maxrss."""


def peak_bytes(device: torch.device | None = None) -> int:
    """The largest memory that this process has held so far: of a CUDA device, or of the host.

    On Linux a started program inherits its parent's ru_maxrss; /proc has the value of the program itself. On
    Windows Python does not tell: 0.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def pick_device(name: str, option: str) -> torch.device:
    """The device of that name; "auto" is CUDA if a device is available, and the CPU otherwise.

    Raises UserError, which names the option, for an unknown name, and for CUDA without a CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{name!r} is not a device", option, "use cpu, cuda or auto") from error
    there = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    if device.type not in ("cpu", *there):
        raise UserError(f"{name!r} is not supported", option, "use cpu, cuda, mps, xpu or auto")
    if device.type in there and not there[device.type].is_available():
        what = f"no {device.type.upper()} device is available"
        raise UserError(what, f"{option} {name}", f"use {option} cpu")
    count = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}.get(device.type, lambda: 1)()
    if device.index is not None and device.index >= count:
        raise UserError(f"there is no device {device.index}", f"{option} {name}", f"there are {count}")
    return device
