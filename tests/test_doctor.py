"""`consistune doctor` reports what is missing, and fails only if the package cannot work."""

import json
import os
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
import typer

from consistune import doctor
from consistune.cli.machine import doctor as command
from consistune.doctor import Finding

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def finding(name: str) -> Finding:
    (match,) = [each for each in doctor.examine() if each.name == name]
    return match


def test_a_machine_that_runs_these_tests_works(capsys: pytest.CaptureFixture[str]) -> None:
    command(as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["works"] is True
    names = {each["name"]: each for each in report["findings"]}
    # A build's own suffix, as in 2.11.0+cu130, need not be in the package's metadata.
    assert names["torch"]["value"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert names["float32 on cpu"]["state"] == "good"
    command(as_json=False)
    assert "float32 on cpu" in capsys.readouterr().out


def test_a_missing_extra_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "no-such-package", ("nothing", "showing that it is missing"))
    missing = finding("no-such-package")
    assert missing.state == "missing"
    assert 'pip install "consistune[nothing]"' in missing.value
    assert doctor.works([missing])


def test_each_extra_that_is_recommended_installs_its_package() -> None:
    for package, (extra, _) in doctor.EXTRAS.items():
        assert package in [line.split(">=")[0] for line in PROJECT["optional-dependencies"][extra]]


def test_a_missing_required_package_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requirements = ["torch>=2.6", "no-such-package (>=1)", 'no-such-extra; extra == "nothing"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: requirements)
    assert doctor.required_packages() == ["torch", "no-such-package"]
    assert finding("no-such-package").state == "problem"
    with pytest.raises(typer.Exit) as exited:
        command(as_json=False)
    assert exited.value.exit_code == 1
    assert "PROBLEM" in capsys.readouterr().out


def test_without_metadata_no_package_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", not_installed)
    assert doctor.works(doctor.examine())


def test_a_precision_works_only_if_its_product_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, coarse in ((torch.float32, 2**-24), (torch.bfloat16, 2**-9), (torch.float16, 2**-12)):
        error = doctor._product_error(torch.device("cpu"), dtype)
        assert isinstance(error, float)
        assert coarse / 30 < error < doctor.TOLERANCE[dtype]
    monkeypatch.setattr(doctor, "_product_error", lambda device, dtype: 0.5)
    assert finding("float32 on cpu").state == "problem"
    assert finding("bfloat16 on cpu").state == "missing"
    monkeypatch.setattr(doctor, "_product_error", lambda device, dtype: "not implemented")
    assert finding("float16 on cpu").value == "does not work: not implemented"


def test_without_a_compiler_torch_compile_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert finding("C++ compiler (CPU)").state == "missing"


def test_a_device_without_float64_is_listed_with_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr(doctor, "_product_error", lambda device, dtype: 0.0)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on a Mac
    monkeypatch.setattr(doctor, "memory_bytes", lambda: sys.maxsize)  # as on Windows
    assert re.fullmatch(r"\d+ cores, \d+ threads", finding("cpu").value)
    assert "on the CPU" in finding("mps").value
    for value, fallback in (("1", True), ("0", False)):
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", value)
        assert finding("mps").value.endswith("what the device lacks") == fallback
    assert finding("bfloat16 on mps").state == "good"


@pytest.mark.gpu
def test_a_cuda_device_is_listed_and_tried() -> None:
    assert finding("cuda:0").state == "good"
    assert finding("float16 on cuda:0").state == "good"
