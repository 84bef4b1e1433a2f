"""benchmarks/card.py: goals from a record, stages that hang or fail, and a stage of the rehearsal."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def timing(*seconds: float) -> dict:
    return {"median": sorted(seconds)[len(seconds) // 2], "seconds": list(seconds)}


def record_of(sct: tuple[float, ...], plain: tuple[float, ...], peaks: dict[str, int]) -> dict:
    times = {
        "ECT, bf16, compiled": timing(0.2, 0.1, 0.3),
        "SCT, bf16, compiled": timing(*sct),
        "plain, fp32": timing(*plain),
    }
    train = {"work": {"FLOP a step": 1e12}, "compiled": {"times": times, "peak bytes": peaks}}
    ceilings = {"bf16": {"FLOP/s": 8e12}}
    stages = {"train": {"status": "done", "parts": train}, "ceilings": {"status": "done", "parts": ceilings}}
    return {"mode": "card", "when": "today", "seconds": 1.0, "missing": [], "stages": stages}


def test_goals_compare_within_a_round_and_say_what_is_open() -> None:
    import card_page

    record = record_of((0.202, 0.101, 0.303), (0.2, 1.0, 3.0), {"SCT, bf16, compiled": 5, "plain, fp32": 10})
    rows = {row["name"]: (row["value"], row["state"]) for row in card_page.goals(record)}
    assert rows["SCT's step, 50,000 references, over ECT's"] == ("1.01 (1.01 to 1.01)", "met")
    assert rows["training over the plain loop, fp32 (ECT's setting)"] == ("10 (1 to 10)", "met")
    assert rows["compiled step, share of the measured bf16 rate"] == ("0.625 (0.417 to 1.25)", "met")
    assert rows["memory of SCT's step over the plain loop's, fp32"] == ("0.5 (0.5 to 0.5)", "met")
    assert rows["training over the plain loop, TF32"] == (card_page.MISSING, "not measured")
    slower = record_of((0.21, 0.105, 0.315), (0.2, 0.1, 0.3), {})
    states = {row["name"]: row["state"] for row in card_page.goals(slower)}
    assert states["SCT's step, 50,000 references, over ECT's"] == "not met"
    assert states["training over the plain loop, fp32 (ECT's setting)"] == "not met"
    assert states["memory of SCT's step over the plain loop's, fp32"] == "not measured"


def test_the_page_escapes_what_a_failed_stage_says(tmp_path) -> None:
    import card_page

    record = record_of((1.0,) * 3, (1.0,) * 3, {}) | {"mode": "rehearse"}
    record["stages"]["run"] = {"status": "failed", "error": "<script>", "parts": {}}
    page = card_page.page(record, tmp_path)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "A rehearsal (rehearse)" in page


def test_the_docs_say_what_the_record_says_and_no_rehearsals_figures() -> None:
    import card_page

    page = (ROOT / "docs" / "card.md").read_text(encoding="utf-8")
    measured = ROOT / "benchmarks" / "results" / "card.json"
    record = json.loads(measured.read_text()) if measured.exists() else None
    assert record is None or record["mode"] == "card"
    assert card_page.goals_in_docs(record) in page
    assert record is not None or "by count, not measured" in page


CHILD = """
import json, os, sys, time
path, how = sys.argv[1:]
open(path + ".partial", "w").write(json.dumps({"first": {"of": how}}))
os.replace(path + ".partial", path)
if how == "hangs": time.sleep(600)
if how == "fails": raise SystemExit("the card fell off")
"""


def given(out: Path, **others) -> argparse.Namespace:
    """The options of a rehearsal of all stages."""
    words = {
        "rehearse": True,
        "pretend": False,
        "minutes": 1.0,
        "carried": None,
        "only": None,
        "earlier": None,
    }
    return argparse.Namespace(**words | others, out=out)


def start_child(kit, name, setting=None):
    """In place of `Kit._start`: CHILD, which does what the stage's name says."""
    command = [sys.executable, "-c", CHILD, str(kit.work / f"{name}.json"), name]
    return subprocess.Popen(command, start_new_session=True)


def test_a_stage_that_hangs_or_fails_loses_nothing_and_the_next_one_runs(monkeypatch, tmp_path) -> None:
    import card

    monkeypatch.setattr(card, "SHORTEST_S", 0.1)
    names = ("hangs", "fails", "works", "late")
    limits = (1.0, 30.0, 30.0, 0.0)
    monkeypatch.setattr(card, "STAGES", tuple(map(card.Stage, names, limits)))

    def start(self, name, setting):
        command = [sys.executable, "-c", CHILD, str(self.work / f"{name}.json"), name]
        log = (self.work / f"{name}.log").open("w")
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True, start_new_session=True)
        while not (self.work / f"{name}.json").exists() and process.poll() is None:
            time.sleep(0.01)  # the stage's time begins when it has measured something
        return process

    monkeypatch.setattr(card.Kit, "_start", start)
    began = time.monotonic()
    kit = card.Kit(given(tmp_path))
    kit.run()
    assert time.monotonic() - began < 500
    stages = json.loads((tmp_path / "card.json").read_text())["stages"]
    assert {name: stages[name]["status"] for name in names} == {
        "hangs": "out of time", "fails": "failed", "works": "done", "late": "no time left",
    }  # fmt: skip
    assert all(stages[name]["parts"] == {"first": {"of": name}} for name in names[:3])
    assert "the card fell off" in stages["fails"]["error"]
    assert "error" not in stages["works"]
    assert (tmp_path / "card.html").is_file()
    assert not kit.complete
    assert not kit.work.exists()


def test_a_second_run_does_what_the_record_lacks_and_stages_go_on_beside_others(
    monkeypatch, tmp_path
) -> None:
    import card

    stages = (card.Stage("first", 30.0), card.Stage("beside", 30.0, beside=True), card.Stage("second", 30.0))
    monkeypatch.setattr(card, "STAGES", (card.Stage("ceilings", 30.0), *stages))
    monkeypatch.setattr(card, "NEEDS", {"second": "beside"})
    started: list[str] = []

    def start(self, name, setting):
        started.append(name)
        return subprocess.Popen([sys.executable, "-c", CHILD, str(self.work / f"{name}.json"), "works"])

    monkeypatch.setattr(card.Kit, "_start", start)
    card.Kit(given(tmp_path, only=["ceilings", "first"])).run()
    assert started == ["ceilings", "first"]
    record = tmp_path / "card.json"
    assert set(json.loads(record.read_text())["stages"]) == {"ceilings", "first"}
    started.clear()
    kit = card.Kit(given(tmp_path, earlier=record))
    kit.run()
    assert started == ["beside", "second"]
    assert kit.complete
    found = json.loads(record.read_text())["stages"]
    assert {name: stage["status"] for name, stage in found.items()} == dict.fromkeys(
        ("ceilings", "first", "beside", "second"), "done"
    )
    again = card.Kit(given(tmp_path, only=["second"], earlier=record))
    assert [stage.name for stage in again.stages] == ["beside", "second"]


def test_a_second_run_loses_nothing_that_the_first_has_measured(monkeypatch, tmp_path) -> None:
    """Not where no time is left, nor where a stage measures less; a failed part is tried again."""
    import card

    names = ("ceilings", "less", "late", "fails", "done")
    monkeypatch.setattr(card, "STAGES", tuple(card.Stage(n, 0.0 if n == "late" else 30.0) for n in names))
    before = {"half": {"of": "earlier"}}
    stages = {
        "ceilings": {"status": "done", "parts": before},
        "less": {"status": "out of time", "parts": before},
        "late": {"status": "out of time", "parts": before},
        "fails": {"status": "done", "parts": {"first": {"failed": "why"}}},
        "done": {"status": "done", "parts": before},
    }
    record = tmp_path / "card.json"
    record.write_text(json.dumps({"mode": "rehearse", "stages": stages}))
    started: list[str] = []

    def start(self, name, setting):
        started.append(name)
        return start_child(self, name)

    monkeypatch.setattr(card.Kit, "_start", start)
    card.Kit(given(tmp_path, earlier=record)).run()
    assert started == ["less", "fails"]
    found = json.loads(record.read_text())["stages"]
    assert found["less"]["parts"] == {**before, "first": {"of": "less"}}
    assert found["late"] == stages["late"]
    assert found["fails"]["parts"] == {"first": {"of": "fails"}}
    assert found["done"] == stages["done"]


def test_a_stage_beside_others_has_its_own_seconds_and_parts_when_the_program_ends(
    monkeypatch, tmp_path
) -> None:
    import card

    stages = (card.Stage("quick", 30.0), card.Stage("hangs", 30.0), card.Stage("beside", 30.0, beside=True))
    monkeypatch.setattr(card, "STAGES", stages)

    def interrupted(self, name, facts, collect=card.Kit._collect):
        collect(self, name, facts)
        if name == "hangs" and self.started["beside"].ended:
            raise KeyboardInterrupt

    monkeypatch.setattr(card.Kit, "_start", start_child)
    monkeypatch.setattr(card.Kit, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        card.Kit(given(tmp_path)).run()
    found = json.loads((tmp_path / "card.json").read_text())["stages"]
    assert found["beside"]["parts"] == {"first": {"of": "beside"}}
    assert found["beside"]["status"] == "done"
    assert found["hangs"]["status"] == "stopped"


def test_times_come_round_by_round_and_a_failure_keeps_the_rounds_before_it() -> None:
    import card_measure
    from consistune.bench.workload import Workload

    calls = []

    def run() -> None:
        calls.append(1)
        if len(calls) > 5:  # an untimed and a timed call a round
            raise RuntimeError("the card fell off")

    workload = Workload("edm-cifar10-ddpmpp", 8)
    found = list(card_measure.attempted("steps", card_measure.in_turns({"one": run}, 4, workload)))
    assert [len(record["times"]["one"]["seconds"]) for _, record in found[:-1]] == [1, 2]
    assert "the card fell off" in found[-1][1]["failed"]
    assert {part for part, _ in found} == {"steps"}


def test_what_a_command_said_is_kept_where_its_stage_ran_out_of_time(monkeypatch, tmp_path) -> None:
    import card

    monkeypatch.setattr(card, "SHORTEST_S", 0.1)
    monkeypatch.setattr(card, "STAGES", (card.Stage("hangs", 2.0),))

    def start(self, name, setting):
        process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
        )
        (self.work / card.call_log(process.pid)).write_text("consistune evaluate MODEL\nthe last line")
        return process

    monkeypatch.setattr(card.Kit, "_start", start)
    card.Kit(given(tmp_path, minutes=0.04)).run()
    stage = json.loads((tmp_path / "card.json").read_text())["stages"]["hangs"]
    assert stage["status"] == "out of time"
    assert stage["error"] == "consistune evaluate MODEL\nthe last line"


def test_a_stage_ends_with_the_program(monkeypatch, tmp_path) -> None:
    """Interrupted, it stops what it started, and the record has what was measured."""
    import card

    monkeypatch.setattr(card, "STAGES", (card.Stage("hangs", 30.0),))
    started = []

    def start(self, name, setting):
        started.append(start_child(self, name))
        return started[0]

    def interrupted(self, name, facts, collect=card.Kit._collect):
        collect(self, name, facts)
        if self.record["stages"][name]["parts"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(card.Kit, "_start", start)
    monkeypatch.setattr(card.Kit, "_collect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        card.Kit(given(tmp_path)).run()
    assert started[0].returncode == -signal.SIGKILL
    stages = json.loads((tmp_path / "card.json").read_text())["stages"]
    assert stages["hangs"]["parts"] == {"first": {"of": "hangs"}}


def test_a_log_with_a_repetition_is_no_continued_run(tmp_path) -> None:
    import card_run

    def write(*images: int) -> None:
        lines = [json.dumps({"images": n, "loss": 1.0}) for n in images]
        (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    write(8, 16, 24)
    assert card_run._continued(tmp_path, 24)["images"] == 24
    for images in ((8, 16, 16, 24), (8, 16)):
        write(*images)
        with pytest.raises(RuntimeError, match="gaps or repetitions"):
            card_run._continued(tmp_path, 24)


def test_carried_modules_of_another_python_are_refused(tmp_path) -> None:
    import card

    def carry(*names: str) -> None:
        with tarfile.open(tmp_path / "site.tar.xz", "w:xz") as archive:
            for name in names:
                archive.addfile(tarfile.TarInfo(name))

    with pytest.raises(SystemExit, match="holds no carried modules"):
        card.unpacked(tmp_path, tmp_path)
    carry("carried_module.py", f"_core.{sys.implementation.cache_tag}.so")
    paths = card.environment("card", card.unpacked(tmp_path, tmp_path))["PYTHONPATH"].split(os.pathsep)
    assert any((Path(path) / "carried_module.py").is_file() for path in paths)
    carry("_core.cpython-27.so")
    with pytest.raises(SystemExit, match="for another Python"):
        card.unpacked(tmp_path, tmp_path / "again")


def test_one_stage_of_the_rehearsal_in_processes_of_its_own(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "card.py"), "--rehearse", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", "ceilings"], capture_output=True, text=True, check=True)
    record = json.loads((tmp_path / "card.json").read_text())
    parts = record["stages"]["ceilings"]["parts"]
    assert set(parts) == {"machine", "bf16", "tf32", "fp32", "copy"}
    assert parts["fp32"]["least"] <= parts["fp32"]["FLOP/s"] <= parts["fp32"]["most"]
    assert all(goal["state"] == "not measured" for goal in record["goals"])
    assert "not measured" in done.stdout
    assert parts["machine"]["torch"] in (tmp_path / "card.html").read_text()
