"""The form of the studies' records: small, a line for each run, and read as what was recorded."""

import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LARGEST = 100_000
"""Bytes of a study's record."""


@pytest.fixture
def records(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import records

    return records


def point(images: int, distance: float) -> dict[str, Any]:
    return {"images": images, "steps_1": {"frechet_train": distance, "accuracy": None}}


def run(seed: int) -> dict[str, Any]:
    curve = [point(128, 1.5 + seed), point(256, 0.25)]
    slower = {"0.999": [point(128, 2.5), point(256, 0.75)]}
    return {"seed": seed, "keys": ["a=1"], "curve": curve, "average": "0.998", "slower": slower}


def test_runs_are_read_as_they_were_recorded_and_lie_on_a_line_each(records, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    records.record(path, run(0), samples=100, machine={"cores": 2})
    added = records.record(path, run(1))
    assert added == records.read_record(path)
    assert added == {"samples": 100, "machine": {"cores": 2}, "runs": [run(0), run(1)]}
    lines = path.read_text().splitlines()
    assert [json.loads(line.rstrip(","))["seed"] for line in lines if '"seed"' in line] == [0, 1]
    assert json.loads(path.read_text())["runs"][0]["curve"]["steps_1"]["frechet_train"] == [1.5, 0.25]


def test_numbers_have_five_digits(records, tmp_path: Path) -> None:
    curve = [point(1_234_567, 0.123456789)]
    (kept,) = records.record(tmp_path / "study.json", {"seed": 0, "seconds": 1234.5678, "curve": curve})[
        "runs"
    ]
    assert kept == {"seed": 0, "seconds": 1234.6, "curve": [point(1_234_567, 0.12346)]}


def test_a_record_of_the_form_before_is_read_and_kept(records, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(json.dumps({"runs": [run(0)]}, indent=1))
    assert records.record(path, run(1))["runs"] == [run(0), run(1)]


def test_every_study_s_record_is_small() -> None:
    names = {path.stem for path in (BENCHMARKS / "studies").glob("*.yaml")}
    sizes = {
        name: path.stat().st_size
        for name in names
        if (path := BENCHMARKS / "results" / f"{name}.json").exists()
    }
    assert len(sizes) > 20
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}
