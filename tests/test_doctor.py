"""The doctor tells what is there from what is not, and only a real problem from a missing option."""

import json

import pytest
import torch
import typer

from consistune import doctor
from consistune.cli.doctor import doctor as command
from consistune.doctor import Finding


def found(name: str) -> Finding:
    (finding,) = [finding for finding in doctor.examine() if finding.name == name]
    return finding


def test_a_machine_that_runs_these_tests_works(capsys: pytest.CaptureFixture[str]) -> None:
    command(as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said["works"] is True
    names = {finding["name"]: finding for finding in said["findings"]}
    assert names["torch"]["value"] == torch.__version__
    assert names["float32 on cpu"]["state"] == "good"
    command(as_json=False)
    assert "float32 on cpu" in capsys.readouterr().out


def test_an_extra_that_is_not_there_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "no-such-package", ("nothing", "showing that it is missed"))
    finding = found("no-such-package")
    assert finding.state == "missing"
    assert 'pip install "consistune[nothing]"' in finding.value
    assert doctor.works([finding])


def test_a_needed_package_that_is_not_there_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "NEEDED", (*doctor.NEEDED, "no-such-package"))
    assert found("no-such-package").state == "problem"
    with pytest.raises(typer.Exit) as exited:
        command(as_json=False)
    assert exited.value.exit_code == 1
    assert "PROBLEM" in capsys.readouterr().out


def test_a_precision_is_believed_only_when_its_product_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, coarse in ((torch.float32, 2**-24), (torch.bfloat16, 2**-9), (torch.float16, 2**-12)):
        error = doctor._product_error(torch.device("cpu"), dtype)
        assert isinstance(error, float)
        assert coarse / 30 < error < doctor.ROOM[dtype]
    monkeypatch.setattr(doctor, "_product_error", lambda device, dtype: 0.5)
    assert found("float32 on cpu").state == "problem"
    assert found("bfloat16 on cpu").state == "missing"
    monkeypatch.setattr(doctor, "_product_error", lambda device, dtype: "not implemented")
    assert found("float16 on cpu").value == "does not work: not implemented"


def test_no_compiler_no_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert found("on the CPU").state == "missing"


@pytest.mark.gpu
def test_a_card_is_listed_and_tried() -> None:
    assert found("cuda:0").state == "good"
    assert found("float16 on cuda:0").state == "good"
