"""The training studies of benchmarks/digits.py: their files, their records, and a small one."""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from consistune.cli.screen import Screen
from consistune.data.images import digits as digits_data
from consistune.metrics.scores import score_suite
from consistune.metrics.suite import Suite
from consistune.models import default_sampler
from consistune.nn import store
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.reproduce.spec import ScaleSettings
from consistune.reproduce.study import Study
from consistune.training.lock import Busy

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STUDIES = sorted(path.stem for path in (BENCHMARKS / "studies").glob("*.yaml"))
TINY = ("train.images=512", "train.batch=128", "train.checkpoint_images=256", "train.log_images=256")


@cache
def suite() -> Suite:
    """The classifier takes longer to train than the runs."""
    return score_suite(digits_data(), "classifier")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import digits

    return digits


def test_a_word_that_its_factor_lacks_is_refused(script, tmp_path: Path, monkeypatch) -> None:
    study = (BENCHMARKS / "studies" / "family.yaml").read_text(encoding="utf-8")
    (tmp_path / "studies").mkdir()
    # Unquoted it is a number, and no run's word.
    (tmp_path / "studies" / "other.yaml").write_text(study.replace('"5e-4": [', "5e-4: ["))
    import study_file

    monkeypatch.setattr(study_file, "HERE", tmp_path)
    with pytest.raises(ValueError, match="rate=5e-4 is not among"):
        script.read_study("other")
    monkeypatch.undo()
    for wrong in ("rate=7", "colour=5e-4"):
        monkeypatch.setattr("sys.argv", ["digits.py", "family", "--only", wrong])
        with pytest.raises(ValueError, match=f"{wrong} is not among"):
            script.main()


@pytest.mark.parametrize("name", STUDIES)
def test_the_recipe_of_every_run_resolves(name: str, script) -> None:
    study = script.read_study(name)
    rows = [row for row, _ in script.rows_of(study, [0])]
    digests = {script.recipe_of(study, row).model_dump_json() for row in rows}
    assert len(digests) == len(rows), "two runs of a study are the same training"


def recorded(name: str) -> dict[str, Any] | None:
    """A study's record; None where there is none, or one of an earlier form."""
    path = BENCHMARKS / "results" / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return result if isinstance(result.get("runs"), list) else None


@pytest.mark.parametrize("name", ["digits_levers", "digits_seeds", "methods_digits"])
def test_recorded_runs_are_recognised(name: str, script) -> None:
    study, result = script.read_study(name), recorded(name)
    known = {script.identity(study, row) for row, _ in script.rows_of(study, [0, 1, 2])}
    assert {script.identity(study, row) for row in result["runs"]} <= known


@pytest.mark.parametrize("name", [name for name in STUDIES if recorded(name)])
def test_every_recorded_run_can_be_made_again(name: str, script) -> None:
    """With its own recipe and seed; the record then has nothing left to do."""
    study, result = script.read_study(name), recorded(name)
    rows = [row for row, _ in script.recorded_rows(study, result)]
    assert [row["seed"] for row in rows] == [run["seed"] for run in result["runs"]]
    for row, run in zip(rows, result["runs"], strict=True):
        assert script.identity(study, row) == script.identity(study, run)
        assert script.recipe_of(study, row) == script.recipe_of(study, run)


def test_runs_made_again_are_shown_beside_the_record(script) -> None:
    study = script.read_study("methods_digits")
    runs = [
        {"method": "ect", "seed": seed, "curve": [{f"steps_{n}": {"frechet_train": end * n} for n in (1, 2)}]}
        for seed, end in ((0, 1.5), (1, 2.5))
    ]
    (line,) = script.beside(study, {"runs": runs[:1]}, {"runs": [runs[1] | {"seed": 0}, runs[1]]})
    assert line == "ect, 0: 1.5 → 2.5, 3 → 5"


def test_the_command_makes_recorded_runs_again_beside_their_record(
    script, tmp_path: Path, monkeypatch, capsys
) -> None:
    asked = []

    def make(study, harness, path, rows) -> None:
        asked.extend((row["method"], row["seed"]) for row, _ in rows)
        runs = [run for run in recorded("methods_digits")["runs"] if (run["method"], run["seed"]) in asked]
        path.write_text(json.dumps({"runs": runs}))

    own = BENCHMARKS / "results" / "methods_digits.json"
    before = own.read_bytes()
    monkeypatch.setattr(script, "make", make)
    again = tmp_path / "again.json"
    words = ["--again", str(again), "--seeds", "0", "2", "--only", "method=cd", "--work", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["digits.py", "methods_digits", *words])
    script.main()
    assert asked == [("cd", 0), ("cd", 2)]
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith("cd, 0: ")
    assert second.startswith("cd, 2: ")
    assert own.read_bytes() == before
    monkeypatch.setattr("sys.argv", ["digits.py", "methods_digits", "--again", str(own)])
    with pytest.raises(SystemExit):
        script.main()
    assert "file of its own" in capsys.readouterr().err


def test_a_run_whose_line_leaves_a_factor_out_has_the_word_that_overrides_nothing(script) -> None:
    study = script.read_study("mnist10k_family")
    rows = list(script.rows_of(study, [0]))
    assert all(set(row) == {*study.factors, "seed", "keys"} for row, _ in rows)
    plain = script.chosen(rows, {"law": ["recipe's"], "recipe": ["ect"], "rate": ["recipe's"]})
    assert [row["estimator"] for row, _ in plain] == ["one-sample", "score-identity", "score-identity"]
    with pytest.raises(ValueError, match="--only: no run has recipe=cmt, law=wide"):
        script.chosen(rows, {"recipe": ["cmt"], "law": ["wide"]})


def test_what_is_wrong_in_a_command_is_one_line_and_nothing_is_written(
    script, tmp_path: Path, monkeypatch, capsys
) -> None:
    """An unknown word, no data, and a record of an earlier form."""
    monkeypatch.chdir(tmp_path)
    threads = str(torch.get_num_threads())
    for words, said in (
        (["family", "--only", "rate=7"], "rate=7 is not among"),
        (["family", "--only", "rate"], "rate= is not among"),
        (["mnist10k_tcm", "--again", str(tmp_path / "again.json")], "data/mnist10k"),
        (["demo_network"], "earlier form"),
    ):
        monkeypatch.setattr("sys.argv", ["digits.py", *words, "--threads", threads])
        assert script.command() == 2
        shown = capsys.readouterr()
        assert said in shown.err
        assert len(shown.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_record_of_an_earlier_form_is_not_overwritten(script, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"runs": {"ect": 1}}')
    with pytest.raises(ValueError, match="earlier form"):
        script.record(path, {"seed": 0})
    assert path.read_text() == '{"runs": {"ect": 1}}'


def test_a_study_records_each_run_once_and_every_average(script, tmp_path: Path) -> None:
    levers = script.read_study("digits_levers")
    scale = ScaleSettings(seeds=1, samples=100, points=2)
    start = EDMPrecond(ResidualMLP((1, 8, 8), 10, width=8, blocks=1))
    place = str(store.save(start, tmp_path / "start"))
    study = levers.model_copy(update={"scale": scale, "start": (place, 1)})
    harness = Study(
        tmp_path,
        "digits",
        "cpu",
        Screen(quiet=True),
        settings=scale,
        overrides=(*TINY, "train.ema=[0.5, 0.999]"),
    )
    harness.judge.suite = suite()
    only = {"budget": ["short"], "lever": ["none"]}
    rows = script.chosen(script.rows_of(study, [0]), only)
    path = tmp_path / "levers.json"
    script.make(study, harness, path, rows)
    first = path.read_text()
    assert json.loads(first)["start"] == harness.judge(start, default_sampler(start, 1))
    runs = script.read_record(path)["runs"]
    assert [run["estimator"] for run in runs] == ["class", "one-sample"]
    for run in runs:
        assert (run["average"], list(run["slower"])) == ("0.5", ["0.999"])
        curves = [run["curve"], run["slower"]["0.999"]]
        assert [[point["images"] for point in curve] for curve in curves] == [[256, 512]] * 2
        assert curves[0][-1]["steps_1"] != curves[1][-1]["steps_1"]
        assert run["seconds"] > 0
    script.make(study, harness, path, rows)
    assert path.read_text() == first


def test_what_another_program_trains_or_records_meanwhile_stays(script, tmp_path: Path, monkeypatch) -> None:
    """It trains the first run's teacher until waited for, and has recorded another seed by then."""
    study = script.read_study("digits_levers").model_copy(update={"start": None})
    path, (other, _) = tmp_path / "levers.json", next(iter(script.rows_of(study, [1])))
    asked: list[str] = []

    class Harness(Study):
        def run(self, name: str, *_) -> None:
            asked.append(name)
            if len(asked) == 1:
                raise Busy(tmp_path)

    monkeypatch.setattr(Busy, "wait", lambda busy: script.record(path, other | {"curve": []}))
    monkeypatch.setattr(script, "result_of", lambda *_: {"curve": [{"images": 1}]})
    only = {"budget": ["short"], "lever": ["none"], "estimator": ["class"]}
    harness = Harness(tmp_path, "digits", "cpu", Screen(quiet=True), settings=study.scale)
    script.make(study, harness, path, script.chosen(script.rows_of(study, [0]), only))
    assert asked == ["short, class, none, 0"] * 2
    assert [run["seed"] for run in json.loads(path.read_text())["runs"]] == [1, 0]


def test_guidance_is_measured_by_the_runs_own_snapshots_and_those_of_its_start(
    script, tmp_path: Path
) -> None:
    scale = ScaleSettings(seeds=1, samples=100, points=1)
    study = script.read_study("digits_guided")
    line = study.runs[0].model_copy(update={"omegas": (1.0, 300.0), "snapshots": ("25%",)})
    study = study.model_copy(update={"scale": scale, "runs": (line,)})
    harness = Study(tmp_path, "digits", "cpu", Screen(quiet=True), settings=scale, overrides=TINY)
    harness.judge.suite = suite()
    path = tmp_path / "guided.json"
    script.make(study, harness, path, script.rows_of(study, [0]))
    (run,) = script.read_record(path)["runs"]
    rows = {(row["worse"], row["omega"], row["steps"]): row["frechet_train"] for row in run["guided"]}
    for worse, steps in itertools.product(("25%", "start's 25%", "start's 50%"), (1, 2)):
        assert rows[worse, 1.0, steps] == run["curve"][-1][f"steps_{steps}"]["frechet_train"]
    # The models hardly differ: so strong a guidance shows it on every machine.
    assert len({rows[worse, 300.0, 1] for worse in ("25%", "start's 25%", "start's 50%")}) == 3
    text = script.table_of(study, {"runs": [run]})
    for worse in ("25%", "start's 25%"):
        best = min((rows[worse, omega, 2], omega) for omega in (1.0, 300.0))
        assert f"| {best[0]:.2f} ({best[0]:.2f}) at {best[1]:g} |" in text


def test_the_timed_steps_have_the_keys_of_the_studys_runs(script, tmp_path: Path) -> None:
    study = script.read_study("reference_size")
    ratios = study.step_ratios.model_copy(update={"rounds": 1, "steps": 1})
    factors = {"reference": {word: study.factors["reference"][word] for word in ("one image", "all")}}
    study = study.model_copy(update={"step_ratios": ratios, "factors": factors})
    harness = Study(tmp_path, "digits", "cpu", Screen(quiet=True), settings=study.scale, overrides=TINY)
    measured = script.step_ratios(study, harness)
    assert list(measured["step_ratios"]) == ["one image", "all"]
    ends = [{f"steps_{n}": {"frechet_train": n + 2.0, "frechet_held_out": n + 4.0} for n in (1, 2)}] * 2
    runs = [{"reference": "all", "curve": ends}]
    cost = measured["step_ratios"]["all"][0]
    distances = "3.00 (3.00) | 3.00 (3.00) | 4.00 (4.00) | 5.00 (5.00)"
    line = f"| all | {cost:.2f} ({cost:.2f} to {cost:.2f}) | {distances} |"
    assert line in script.table_of(study, measured | {"runs": runs})


def test_a_distillation_gets_its_own_teacher_and_costs_are_measured_in_turns(script, tmp_path: Path) -> None:
    methods = script.read_study("methods_digits")
    ratios = methods.step_ratios.model_copy(update={"rounds": 2, "steps": 1})
    factors = {"method": {"ect": (), "cd": ()}}
    study = methods.model_copy(update={"step_ratios": ratios, "factors": factors})
    harness = Study(tmp_path, "digits", "cpu", Screen(quiet=True), settings=study.scale, overrides=TINY)
    measured = script.step_ratios(study, harness)
    assert measured["step_ratios"]["ect"] == [1.0, 1.0]
    assert len(measured["step_ratios"]["cd"]) == len(measured["step_seconds"]) == 2
    assert [path.name.split("-")[0] for path in tmp_path.glob("*/runs/*")] == ["diffusion"]


def test_equal_cost_gives_a_dearer_network_fewer_images(script) -> None:
    study = script.read_study("demo_network")
    row = next(row for row, _ in script.rows_of(study, [0]) if row["network"] == "unet 32")
    spec = script.spec_of(study, row, {"step_ratios": {"unet 32": [4.0, 2.0, 1.0]}})
    assert spec.set[-1] == "train.images=384000"


def test_the_table_of_equal_cost_has_the_last_quarters_loss_and_the_distance(script) -> None:
    study = script.read_study("latent_networks")
    losses = [[100 * k, loss] for k, loss in enumerate([9, 9, 9, 9, 9, 9, 1, 2])]
    run = {"rate": "2e-3", "images": 3200, "parameters": 3_652_448, "loss": losses}
    run["ends"] = {"18": {"frechet_train": 51.25}}
    results = {"step_ratios": {"dit": [2.0, 1.0, 4.0]}, "runs": [run | {"network": "dit"}]}
    expected = "| dit | 3.65 M | 2.00 (1.00 to 4.00) | 3,200 | 2e-3 | 1.500 | 51.2 |"
    assert expected in script.table_of(study, results)


def test_runs_that_are_measured_at_the_end_fill_their_table_and_picture(
    script, tmp_path: Path, monkeypatch
) -> None:
    import tables

    scale = ScaleSettings(seeds=1, samples=100, points=1)
    changes = {"data": "digits", "recipe": "digits-{run}", "scale": scale}
    study = script.read_study("mnist10k").model_copy(update=changes)
    harness = Study(tmp_path, "digits", "cpu", Screen(quiet=True), settings=scale, overrides=TINY)
    harness.judge.suite = suite()
    monkeypatch.setattr(script, "DOCS", tmp_path)
    script.make(study, harness, tmp_path / "result.json", script.rows_of(study, [0]))
    result = json.loads((tmp_path / "result.json").read_text())
    ends = {run["run"]: run["ends"] for run in result["runs"]}
    assert {name: list(steps) for name, steps in ends.items()} == {
        "edm": ["18"], "ect": ["1", "2"], "sct": ["1", "2"],
    }  # fmt: skip
    assert result["held_out"]["images"] == len(digits_data().held_out)
    assert (tmp_path / "mnist10k.png").stat().st_size > 1000
    monkeypatch.setattr(tables, "read", lambda name: result)
    text = tables.mnist10k()
    assert f"| 35 | {ends['edm']['18']['frechet_train']:.2f} |" in text
    assert text.count("`mnist10k-") == 5
