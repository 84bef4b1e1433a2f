"""Studies with trainings of a few steps: sharing, going on after a kill, and what is written."""

import csv
import json
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from consistune.data.images import digits
from consistune.errors import UserError
from consistune.metrics.scores import score_suite
from consistune.metrics.suite import Suite
from consistune.models import default_sampler
from consistune.reproduce.results import as_csv, over_seeds
from consistune.reproduce.run import read_experiment, reproduce
from consistune.reproduce.spec import RunSpec, settings_of
from consistune.reproduce.study import Study, samplers
from consistune.training.lock import Busy, folder_lock

TINY = (
    "train.images=768",
    "train.batch=128",
    "train.checkpoint_images=256",
    "train.log_images=256",
)


SMALL = settings_of("digits")[1].scales["smoke"].model_copy(update={"samples": 100, "points": 2})


class Killed(BaseException):
    """A kill: no handler of the program sees it coming."""


class Screen:
    """Keeps the names of what is trained; kills at step `at` of the first run whose name has `kill` in it."""

    def __init__(self, kill: str | None = None, at: int = 5) -> None:
        self.trained: list[str] = []
        self.said: list[str] = []
        self.kill, self.left, self.current = kill, at, ""

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0) -> Iterator["Screen"]:
        self.current = description
        self.trained.append(description)
        yield self

    def advance(self, amount: int, note: str | None = None) -> None:
        if self.kill and self.kill in self.current:
            self.left -= 1
            if self.left == 0:
                raise Killed


@cache
def suite() -> Suite:
    return score_suite(digits(), "classifier")


def study_in(out: Path, screen: Screen, seeds: int = 2, **asked) -> Study:
    study = Study(out, "digits", "smoke", screen, seeds=seeds, overrides=TINY, settings=SMALL, **asked)
    study.judge.suite = suite()  # the classifier takes longer to train than all the rest
    return study


def make(name: str, out: Path, screen: Screen, seeds: int = 2) -> Path:
    return reproduce(name, study_in(out, screen, seeds))


def first_seed(whole: Path) -> list[str]:
    """The lines of the unbroken convergence's table that are of seed 0, below its head."""
    head, *lines = (whole / "convergence" / "data.csv").read_text().splitlines()
    at = head.split(",").index("seed")
    return [head, *(line for line in lines if line.split(",")[at] == "0")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """An unbroken convergence, and what shares its folder."""
    return make("convergence", tmp_path_factory.mktemp("whole"), Screen()).parents[1]


def test_a_killed_study_goes_on_to_the_same_table(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        make("convergence", tmp_path, Screen(kill="score-identity"), 1)
    assert not (tmp_path / "digits-smoke" / "convergence").exists()
    screen = Screen()
    page = make("convergence", tmp_path, screen, 1)
    assert page.with_name("data.csv").read_text().splitlines() == first_seed(whole)
    assert [name.split("-")[0] for name in screen.trained] == ["score"]  # the teacher and ECT were there
    assert any("found finished" in line for line in screen.said)


def test_what_another_program_trains_is_left_for_last(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command twice shares the work: here the other has the first seed's SCT until waited for."""
    with pytest.raises(Killed):
        make("convergence", tmp_path, Screen(kill="score-identity"))
    (folder,) = tmp_path.glob("*/runs/score-identity-*-0")
    other = ExitStack()
    other.enter_context(folder_lock(folder, print))
    monkeypatch.setattr(Busy, "wait", lambda busy: other.close())
    screen = Screen()
    page = make("convergence", tmp_path, screen)
    assert page.with_name("data.csv").read_bytes() == (whole / "convergence" / "data.csv").read_bytes()
    assert [name.split("-")[0] for name in screen.trained] == ["diffusion", "one", "score", "score"]
    assert screen.trained[-1] == folder.name
    assert f"waiting for the program that trains in {folder}" in screen.said


def test_the_table_has_every_seed_and_the_summary_its_mean_and_spread(whole: Path) -> None:
    with (whole / "convergence" / "data.csv").open() as file:
        rows = list(csv.DictReader(file))
    record = json.loads((whole / "convergence" / "data.json").read_text())
    assert {(r["run"], r["seed"], r["sampler"]) for r in rows} == {
        (run, seed, f"steps={steps}") for run in ("ECT", "SCT") for seed in "01" for steps in (1, 2)
    }
    assert record["seeds"] == [0, 1]
    assert (record["images"], record["teacher_images"]) == (768, 768)
    for line in record["summary"]:
        same = [
            float(r["frechet_train"])
            for r in rows
            if (r["run"], r["sampler"], int(r["images"])) == (line["run"], line["sampler"], line["images"])
        ]
        assert line["frechet_train"] == pytest.approx(statistics.mean(same))
        assert line["frechet_train_std"] == pytest.approx(statistics.stdev(same))
    assert len({line["frechet_train"] for line in record["summary"]}) == len(record["summary"])


@pytest.mark.parametrize("kill", [None, "score-identity"])
def test_a_study_that_was_moved_goes_on(kill: str | None, whole: Path, tmp_path: Path) -> None:
    """Finished runs are found and unfinished ones continued, though their teachers lie elsewhere now."""
    with pytest.raises(Killed) if kill else nullcontext():
        make("convergence", tmp_path / "before", Screen(kill), 1)
    (tmp_path / "before").rename(tmp_path / "after")
    screen = Screen()
    page = make("convergence", tmp_path / "after", screen, 1)
    assert [name.split("-")[0] for name in screen.trained] == ([] if kill is None else ["score"])
    assert page.with_name("data.csv").read_text().splitlines() == first_seed(whole)


def test_keys_hold_for_every_student_and_leave_other_results_alone(whole: Path) -> None:
    screen = Screen()
    keys = ("pairs.gap.max_ratio=0.5", "optimizer.lr=1e-3")
    page = reproduce("convergence", study_in(whole.parent, screen, seeds=1, student=keys))
    assert [name.split("-")[0] for name in screen.trained] == ["one", "score"]  # the teacher is the same
    for name in screen.trained:
        text = (whole / "runs" / name / "recipe.yaml").read_text()
        assert "max_ratio: 0.5" in text
        assert "lr: 0.001" in text
    assert page.parent.name == "convergence,pairs.gap.max_ratio=0.5,optimizer.lr=1e-3"
    record, plain = (
        json.loads((whole / folder / "data.json").read_text()) for folder in (page.parent.name, "convergence")
    )
    assert record["data"] == "digits, pairs.gap.max_ratio=0.5, optimizer.lr=1e-3"
    assert record["command"].endswith("--set pairs.gap.max_ratio=0.5 --set optimizer.lr=1e-3 --seeds 1")
    assert record["recipes"].keys() == plain["recipes"].keys()
    assert not set(record["recipes"].values()) & set(plain["recipes"].values())


@pytest.mark.parametrize(
    ("key", "complaint"),
    [
        ("pairs.gap.max_ratio=2.0", "max_ratio=2.0 is out of range"),
        ("loss.steps=2", "valid only at x_t"),  # SCT alone can have it
        ("estimator.size=8", "unknown key"),
    ],
)
def test_a_student_that_cannot_be_trained_is_refused_before_its_teacher_is(
    key: str, complaint: str, tmp_path: Path
) -> None:
    screen = Screen()
    with pytest.raises(UserError, match=complaint):
        reproduce("convergence", study_in(tmp_path, screen, student=(key,)))
    assert screen.trained == []


def test_an_experiment_shares_what_another_has_trained(whole: Path) -> None:
    screen = Screen()
    page = make("samples", whole.parent, screen)
    assert screen.trained == []
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 3
    assert text.count("src=") == text.count('src="data:')  # self-contained
    screen = Screen()
    make("target", whole.parent, screen)
    assert len(screen.trained) == 2  # batch references, two seeds: none is ECT, all is SCT
    ends = (
        json.loads((whole / name / "data.json").read_text())["summary"] for name in ("convergence", "target")
    )
    here, there = ({(r["run"], r["sampler"], r["images"]): r for r in end if "sampler" in r} for end in ends)
    for (run, *at), line in here.items():
        other = there["none" if run == "ECT" else "all", *at]
        assert line["frechet_train"] == other["frechet_train"]


def test_guidance_asks_each_question_once_and_omega_one_is_the_plain_model(whole: Path) -> None:
    spec = read_experiment("guidance").model_copy(update={"omegas": (1.0, 1.5), "snapshots": ("25%", "75%")})
    outcome = spec.make(study_in(whole.parent, Screen(), seeds=1))
    with (whole / "convergence" / "data.csv").open() as file:
        plain = [row for row in csv.DictReader(file) if (row["seed"], row["images"]) == ("0", "768")]
    ends = {(row["run"], row["sampler"]): float(row["frechet_train"]) for row in plain}
    for row in outcome.rows:
        end = ends[row["run"], f"steps={row['steps']}"]
        assert (row["frechet_train"] == pytest.approx(end, rel=1e-9)) == (row["omega"] == 1.0)
    asked = json.loads(next(whole.glob("runs/score-identity*-0/measured.json")).read_text())
    assert len(asked) == 2 * (1 + 2)
    assert outcome.rows == spec.make(study_in(whole.parent, Screen(), seeds=1)).rows


def test_a_phased_run_is_cut_at_its_edges_and_sampled_by_eta(tmp_path: Path) -> None:
    study = study_in(tmp_path, Screen(), seeds=1)
    spec = RunSpec(recipe="sct", phases=4, etas=(1.0, 0.0))
    run = study.run("four", spec, 0)
    model = run.model()
    chosen = samplers(model, spec.etas)
    assert list(run.curve[-1]) == ["images", *chosen]
    assert len(chosen["eta=1"].stops(80.0)) == 5
    one = study.judge(model, default_sampler(model, 1))
    assert study.judge(model, chosen["eta=0"]) == one
    assert study.judge(model, chosen["eta=1"]) != one


def test_a_table_quotes_its_sources_and_leaves_open_what_is_not_there(whole: Path) -> None:
    page = make("table-cifar10", whole.parent, Screen())
    with page.with_name("data.csv").open() as file:
        rows = list(csv.DictReader(file))
    published = [row for row in rows if row["published"]]
    assert all(row["source"] and not row["ours"] for row in published)
    assert ("SCT", "3.11", "open") in {(r["method"], r["published"], r["state"]) for r in published}
    here = [row for row in rows if row["ours"]]
    assert {row["method"] for row in here} == {"ECT on digits", "SCT on digits"}
    assert all("not FID" in row["measure"] for row in here)
    assert "CIFAR-10 as a prepared folder" in page.read_text(encoding="utf-8")


def test_means_and_spreads_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4))
    rows = [{"run": f"r{i}", "seed": s, "value": values[i, s]} for s in range(4) for i in range(3)]
    rows.append({"run": "alone", "seed": 0, "value": 2.0})
    found = {line["run"]: line for line in over_seeds(rows, ("run",), ("value",))}
    for i in range(3):
        assert found[f"r{i}"]["value"] == pytest.approx(values[i].mean())
        assert found[f"r{i}"]["value_std"] == pytest.approx(values[i].std(ddof=1))
    assert found["alone"] == {"run": "alone", "seeds": 1, "value": 2.0, "value_std": None}


def test_a_table_of_unlike_rows_has_all_columns() -> None:
    assert as_csv([{"a": 1}, {"b": 0.1}]) == "a,b\n1,\n,0.1\n"


@pytest.mark.gpu
def test_a_study_runs_on_a_card(tmp_path: Path) -> None:
    study = Study(tmp_path, "digits", "smoke", Screen(), seeds=1, device="cuda", overrides=TINY)
    for name in ("samples", "guidance", "mdp"):
        assert reproduce(name, study).is_file()
    assert all(run.is_dir() for run in study.folder.glob("runs/*/model"))


def test_what_another_program_measured_meanwhile_is_kept(tmp_path: Path) -> None:
    study: Any = SimpleNamespace(settings=SimpleNamespace(samples=4))
    run: Any = SimpleNamespace(folder=tmp_path)
    asked: list[str] = []

    def measure(question: str, meanwhile: str = "") -> dict[str, float | None]:
        asked.append(question)
        if meanwhile:
            Study.measured(study, run, meanwhile, lambda: measure(meanwhile))
        return {"value": float(len(question))}

    assert Study.measured(study, run, "one", lambda: measure("one", "three")) == {"value": 3.0}
    for question in ("one", "three"):
        Study.measured(study, run, question, lambda: pytest.fail("it was measured already"))
    assert asked == ["one", "three"]
