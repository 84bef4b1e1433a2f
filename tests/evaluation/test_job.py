"""The whole of `consistune evaluate`, on the digits."""

import json
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consistune.cli.evaluate import new_folder
from consistune.core.sampling import Multistep
from consistune.data.images import digits
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.errors import UserError
from consistune.evaluation.compare import compare, names
from consistune.evaluation.job import Job
from consistune.evaluation.record import summarise
from consistune.evaluation.request import Request
from consistune.evaluation.search import SETTINGS, Range, all_settings, golden_section, register_setting
from consistune.evaluation.sources import FileSource, ModelSource
from consistune.evaluation.while_training import training_evaluation
from consistune.metrics.features import load_extractor
from consistune.metrics.frechet import frechet
from consistune.metrics.kernel import kernel_distance
from consistune.metrics.moments import moments
from consistune.metrics.sheet import INCEPTION
from consistune.metrics.statistics import read_samples
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.pages.evaluation import FORCED, REAL, TEACHER, verdict
from tests.support.command import run_main
from tests.support.inception import write_inception
from tests.support.makers import edm_zip, pixels
from tests.support.ports import free_port


class Quiet:
    def say(self, text: str) -> None: ...
    def advance(self, amount: int, note: str | None = None) -> None: ...

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0):
        yield self


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), num_classes=10, width=32, blocks=1))
    model.card = ModelCard(objective="consistency", mid_t=(0.8,))
    return store.save(model, tmp_path_factory.mktemp("model") / "model")


def samples_file(path: Path, images: torch.Tensor) -> Path:
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy())
    return path


def evaluate(tmp_path: Path, model: Path, **wanted) -> dict:
    page = Job(Request(model, tmp_path / "out", **{"data": "digits", **wanted}), Quiet()).run()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    return json.loads((tmp_path / "out" / "results.json").read_text())


def means(row: dict) -> dict[str, float]:
    return {name: value["mean"] for name, value in row["summary"].items()}


def test_copies_of_the_training_set_are_perfect_but_for_memorisation(tmp_path: Path) -> None:
    train = digits().train.images
    file = samples_file(tmp_path / "copies.npz", train)
    found = means(evaluate(tmp_path, file, samples=len(train))["rows"][0])
    assert found["fd-classifier"] == pytest.approx(0, abs=1e-6)
    assert found["precision"] == found["recall"] == found["copies"] == 1
    assert found["novelty"] == 0
    assert found["near_copies"] == 1


def test_held_out_images_are_good_and_new_and_noise_is_neither_good(tmp_path: Path) -> None:
    held_out = digits().held_out
    assert held_out is not None
    n = len(held_out.images)
    file = samples_file(tmp_path / "real.npz", held_out.images)
    real = means(evaluate(tmp_path, file, samples=n)["rows"][0])
    generator = torch.Generator().manual_seed(0)
    pure = torch.randint(0, 256, held_out.images.shape, generator=generator, dtype=torch.uint8)
    noise = means(evaluate(tmp_path, samples_file(tmp_path / "noise.npz", pure), samples=n)["rows"][0])
    assert real["novelty"] == pytest.approx(1)
    assert real["novelty_features"] == pytest.approx(1)
    assert real["copies"] == 0
    assert real["near_copies"] < 0.02
    assert real["fd-classifier"] < noise["fd-classifier"] / 50
    assert real["precision"] > 0.7 > 0.1 > noise["precision"]
    half = digits().train.images[digits().train.labels < 5]
    file = samples_file(tmp_path / "half.npz", half)
    dropped = means(evaluate(tmp_path, file, samples=len(half))["rows"][0])
    assert dropped["precision"] == 1
    assert dropped["recall"] < 0.75


def test_a_model_is_measured_in_several_steps_and_blocks(tmp_path: Path, model_folder: Path) -> None:
    results = evaluate(
        tmp_path,
        model_folder,
        samples=60,
        blocks=2,
        steps=(1, 2),
        keep=tmp_path / "kept.npz",
        extrapolate=True,
    )
    assert [row["sampler"]["evaluations"] for row in results["rows"]] == [1, 2]
    row = results["rows"][0]
    assert row["seeds"] == [[0, 59], [60, 119]]
    a, b = (block["values"]["fd-classifier"] for block in row["blocks"])
    assert row["summary"]["fd-classifier"] == {
        "mean": pytest.approx((a + b) / 2),
        "min": min(a, b),
        "standard_error": pytest.approx(abs(a - b) / 2),
    }
    kept = sorted(tmp_path.glob("kept_*.npz"))
    assert len(kept) == 4
    # The same seeds measured from the file give the same numbers: they were quantised before.
    again = evaluate(tmp_path, kept[0], samples=60)
    assert means(again["rows"][0])["fd-classifier"] == pytest.approx(a, rel=1e-7)
    for key in ("model", "data", "extractor", "environment", "labels"):
        assert results[key]
    assert len(results["model"]["sha256"]) == len(results["data"]["sha256"]) == 64


def test_one_block_of_one_row_is_kept_under_the_name_that_was_given(tmp_path: Path) -> None:
    wanted = Request(tmp_path, tmp_path, "digits", keep=tmp_path / "kept.npz")
    assert wanted.keep_file("1 evaluation", 0, 0, 1) == tmp_path / "kept.npz"
    assert wanted.keep_file("1 evaluation", 0, 1, 2) == tmp_path / "kept_process1.npz"
    both = replace(wanted, steps=(1, 2), blocks=2)
    assert both.keep_file("2 evaluations", 1, 0, 1) == tmp_path / "kept_2-evaluations_block1.npz"


def test_fid_is_what_the_official_file_gives(tmp_path: Path, model_folder: Path) -> None:
    file, _ = write_inception(tmp_path, "small.pt", 96)
    protocol = INCEPTION.model_copy(update={"dim": 96})
    file.with_suffix(".yaml").write_text(protocol.model_dump_json())  # JSON is YAML
    wanted = {"features": str(file), "metrics": ("fid", "is", "kid"), "samples": 50}
    kept = tmp_path / "kept.npz"
    found = means(evaluate(tmp_path, model_folder, keep=kept, **wanted)["rows"][0])
    extractor = load_extractor(str(file))
    drawn, real = (extractor(images) for images in (read_samples(kept)[0], digits().train.images))
    assert found["fid"] == pytest.approx(frechet(*moments(drawn), *moments(real)), rel=1e-6)
    assert found["kid"] == pytest.approx(kernel_distance(real, drawn)[0], rel=1e-6)
    assert 1 < found["is"] < 12  # the network has 12 classes


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [
        ({"metrics": ("fid",)}, "official Inception.*fd-efficientnet"),
        ({"metrics": ("fid",), "features": "classifier"}, "fd-classifier is not FID"),
        ({"metrics": ("is",), "features": "classifier"}, "no class probabilities"),
        ({"metrics": ("fd", "beauty")}, "unknown metric 'beauty'"),
        ({"data": None}, "nothing to compare with"),
        ({"search": "eta"}, "no phases"),
        ({"samples": 15, "extrapolate": True}, "--extrapolate: 15 samples are too few"),
    ],
)
def test_what_cannot_be_is_refused(wanted, complaint, tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        evaluate(tmp_path, model_folder, **({"samples": 20} | wanted))


def test_a_setting_that_is_defined_again_replaces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistune.evaluation.search.SETTINGS", dict(SETTINGS))
    settings = [replace(SETTINGS["eta"], apply=lambda model, _: model) for _ in range(2)]
    for setting in settings:
        register_setting("steps", setting)
    assert all_settings()["steps"] is settings[1]
    with pytest.raises(ValueError, match="already"):
        register_setting("eta", settings[0])


def test_the_search_finds_a_known_valley_and_reports_its_points() -> None:
    best, curve = golden_section(lambda t: (math.log(t) - math.log(1.5)) ** 2, SETTINGS["mid-t"].values, 20)
    assert best == pytest.approx(1.5, rel=0.01)
    assert len(curve) == 20
    assert curve == sorted(curve)
    assert golden_section(lambda t: t, Range(0.0, 1.0, False), 9)[0] == 0.0
    assert len(golden_section(lambda t: t * t, Range(0.5, 1.0, False), 1000)[1]) < 200  # it ends


def test_the_search_is_confirmed_on_all_samples(tmp_path: Path, model_folder: Path) -> None:
    results = evaluate(
        tmp_path, model_folder, samples=40, search="mid-t", search_samples=30, search_evaluations=8
    )
    assert results["rows"][0]["name"] == "mid-t as the model says"
    assert results["rows"][1]["sampler"]["mid"] == [results["search"]["best"]]
    assert len(results["search"]["curve"]) == 8
    assert (tmp_path / "out" / "curve.svg").read_text().startswith("<svg xmlns")
    assert (tmp_path / "out" / "curve.png").read_bytes()[:4] == b"\x89PNG"


def jumping(folder: Path) -> Path:
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), num_classes=10, width=32, blocks=1, second_time=True)
    model = EDMPrecond(network)
    model.card = ModelCard(objective="mean-velocity", mid_t=(0.8,), lowest=0.5)
    return store.save(model, folder / "jumping")


def test_the_search_takes_the_models_own_sampler_within_what_it_learned(tmp_path: Path) -> None:
    wanted = {"samples": 20, "search": "mid-t", "search_samples": 20, "search_evaluations": 7}
    results = evaluate(tmp_path, jumping(tmp_path), **wanted)
    default, found = (row["sampler"] for row in results["rows"][:2])
    assert (default["kind"], default["edges"]) == ("PhasedSteps", [0.8])
    assert (found["kind"], found["edges"]) == ("PhasedSteps", [results["search"]["best"]])
    assert min(point["value"] for point in results["search"]["curve"]) == 0.5


def test_the_search_of_guidance_compares_the_same_number_of_steps(tmp_path: Path, model_folder: Path) -> None:
    wanted = {"samples": 20, "search": "omega", "search_samples": 20, "search_evaluations": 7, "steps": (2,)}
    results = evaluate(tmp_path, model_folder, **wanted)
    assert [row["sampler"]["evaluations"] for row in results["rows"][:2]] == [2, 2]


def test_labels_follow_the_rule_and_the_seed_alone(model_folder: Path) -> None:
    labels = torch.tensor([3] * 90 + [5] * 10)
    drawing = ModelSource(store.load(model_folder), Multistep(), labels)
    found = drawing.labels_of(range(2000))
    assert torch.equal(found[100:110], drawing.labels_of(range(100, 110)))
    assert set(found.tolist()) == {3, 5}
    assert float((found == 5).double().mean()) == pytest.approx(0.1, abs=0.03)
    assert not torch.equal(found, labels[torch.arange(2000) % 100])
    uniform, balanced = (
        replace(drawing, label_rule=rule).labels_of(range(2000)) for rule in ("uniform", "balanced")
    )
    assert torch.bincount(uniform).min() > 140
    assert torch.equal(balanced, torch.arange(2000) % 10)
    assert not torch.equal(uniform, balanced)


def test_one_block_has_no_error() -> None:
    assert summarise([{"fd": 2.0}]) == {"fd": {"mean": 2.0, "min": 2.0, "standard_error": None}}


def test_the_curve_in_training_is_repeatable_and_named(model_folder: Path) -> None:
    model = store.load(model_folder)
    evaluate_quickly = training_evaluation(digits(), samples=40)
    assert evaluate_quickly(model) == evaluate_quickly(model)
    assert next(iter(evaluate_quickly(model))) == "fd-classifier_percent"


def run_both(arguments: list[str], environment: dict[str, str]) -> None:
    """`consistune evaluate …` on two processes."""
    common = {**environment, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "consistune", "evaluate", *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors.decode()[-2000:]


def test_two_processes_give_what_one_gives(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def raw(x):\n    return x[:, 0].flatten(1)[:, ::3]\nraw.protocol = {'name': 'fd-raw'}\n"
    (tmp_path / "every_third.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = [str(model_folder), "--data", "digits", "--samples", "101", "--batch", "16"]
    arguments += ["--device", "cpu", "--extrapolate", "--features", "every_third:raw", "--out"]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    found = []
    for count in (1, 2):
        cache, out = str(tmp_path / f"cache-{count}"), str(tmp_path / str(count))
        if count == 1:  # the reference too is made by one or by two
            with monkeypatch.context() as patch:
                patch.setenv("CONSISTUNE_CACHE", cache)
                done = run_main("evaluate", *arguments, out)
            assert done.returncode == 0, done.stderr
        else:
            own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "CONSISTUNE_CACHE": cache}
            run_both([*arguments, out], os.environ | own)
        results = json.loads((tmp_path / str(count) / "results.json").read_text())
        assert results["environment"]["processes"] == count
        found.append(results["rows"][0])
    assert found[0]["blocks"][0]["worst"] == found[1]["blocks"][0]["worst"]
    for name, value in means(found[0]).items():
        assert means(found[1])[name] == pytest.approx(value, rel=1e-9), name


def anchored(folder: Path, model_folder: Path, start_from: str, samples: int) -> dict[str, dict]:
    """The anchors of a tuned model that says it started there, by kind; the terminal's lines as "said"."""
    model = store.load(model_folder)
    model.card = model.card.updated(start_from={"path": start_from})
    said: list[str] = []
    screen = Quiet()
    screen.say = said.append
    tuned = model.save(folder / "tuned")
    request = Request(tuned, folder / "out", "digits", samples=samples, metrics=("fd",), anchors=True)
    Job(request, screen).run()
    results = json.loads((folder / "out" / "results.json").read_text())
    return {row["kind"]: row for row in results["anchors"]} | {"said": said, "rows": results["rows"]}


def test_a_tuned_model_is_measured_beside_real_images_and_its_teacher(
    tmp_path: Path, model_folder: Path
) -> None:
    teacher = store.load(model_folder)
    teacher.card = ModelCard(objective="diffusion")
    path = teacher.save(tmp_path / "teacher")
    found = anchored(tmp_path, model_folder, str(path), 32)
    assert found[TEACHER]["sampler"]["evaluations"] == 35
    assert found[FORCED]["sampler"]["evaluations"] == 1
    # The tuned model's weights are the teacher's, so that one step of either is the same map from the noise.
    assert means(found[FORCED])["fd-classifier"] == pytest.approx(means(found["rows"][0])["fd-classifier"])
    held_out = digits().held_out
    rows = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:32]
    assert len(held_out.labels[rows].unique()) > 5  # they are sorted by class
    file = samples_file(tmp_path / "real.npz", held_out.images[rows])
    real = evaluate(tmp_path / "real", file, samples=32, metrics=("fd",))["rows"][0]
    assert means(found[REAL]) == pytest.approx(means(real))
    assert any(line.startswith(f"{REAL}: fd-classifier ") for line in found["said"])


def test_a_teacher_that_is_not_there_is_said_and_real_images_remain(
    tmp_path: Path, model_folder: Path
) -> None:
    found = anchored(tmp_path, model_folder, "runs/gone/model", 8)
    assert set(found) == {REAL, "said", "rows"}
    assert any(
        "the teacher is not measured beside the model: runs/gone/model" in line for line in found["said"]
    )


def test_the_verdict_says_how_far_tuning_has_gone() -> None:
    def row(kind: str, value: float) -> dict:
        return {"name": kind, "kind": kind, "summary": {"fid": {"mean": value}, "fid_bias": {"mean": 0}}}

    def last(own: float) -> str:
        return verdict({"rows": [row("mine", own)], "anchors": [row(TEACHER, 2.0), row(FORCED, 10.0)]})[-1]

    assert last(4.0).startswith("tuning has gone 75% of the way from the teacher in one step (10)")
    assert last(12.0).startswith("the model is no better than the teacher in one step (10)")
    assert verdict({"rows": [row("mine", 4.0)], "anchors": [row(REAL, 1.0)]}) == [
        "mine: fid 4",
        f"{REAL}: fid 1",
    ]


def test_without_a_folder_no_earlier_evaluation_is_replaced(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = []
    for _ in range(3):
        folders.append(str(new_folder()))
        Path(folders[-1]).mkdir(parents=True)
    assert folders == ["runs/evaluation", "runs/evaluation-2", "runs/evaluation-3"]


def test_models_are_compared_in_one_table_and_each_has_its_own_folder(
    tmp_path: Path, model_folder: Path
) -> None:
    """Two models, one of them twice: equal rows; the anchors once; a name for each."""
    other = samples_file(tmp_path / "copies.npz", digits().train.images)
    request = Request(model_folder, tmp_path / "out", "digits", samples=16, metrics=("fd",), anchors=True)
    page = compare(request, [model_folder, model_folder, other], Quiet())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    name = model_folder.parent.name
    assert [row["name"] for row in results["rows"]] == [
        f"{name}, 1 evaluation", f"{name}-2, 1 evaluation", "copies, samples"
    ]  # fmt: skip
    assert means(results["rows"][0]) == means(results["rows"][1]) != means(results["rows"][2])
    assert [row["kind"] for row in results["anchors"]] == [REAL]
    assert f"{name}-2, 1 evaluation" in page.read_text(encoding="utf-8")
    for folder in (name, f"{name}-2", "copies"):
        assert (tmp_path / "out" / folder / "report.html").is_file()
    with pytest.raises(UserError, match="one file for several models"):
        compare(replace(request, keep=tmp_path / "k.npz"), [model_folder, other], Quiet())


def test_data_of_other_classes_than_the_models_are_refused(tmp_path: Path, model_folder: Path) -> None:
    prepare(edm_zip(tmp_path / "a.zip", pixels(16, 8, 8), [0, 1] * 8), tmp_path / "two", PrepareOptions())
    source = tmp_path / "two"
    with pytest.raises(UserError, match="--data: the model has 10 classes, the data 2"):
        evaluate(tmp_path, model_folder, data=str(source), samples=8, metrics=("fd",))
    found = evaluate(
        tmp_path, model_folder, data=str(source), samples=8, metrics=("fd",), label_rule="uniform"
    )
    assert found["rows"]


def test_an_anchor_that_cannot_be_measured_is_said_and_the_rest_is_kept(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ValueError("no such thing")

    monkeypatch.setattr(FileSource, "__call__", fails)
    found = anchored(tmp_path, model_folder, "runs/gone/model", 8)
    assert set(found) == {"said", "rows"}
    assert f"{REAL} is not measured: no such thing" in found["said"]


def test_a_labelled_teacher_of_an_unlabelled_model_draws_all_classes(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sixth.py").write_text("def raw(x):\n    return x[:, 0].flatten(1)[:, ::6]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    teacher = store.load(model_folder)
    teacher.card = ModelCard(objective="diffusion")
    path = teacher.save(tmp_path / "teacher")
    torch.manual_seed(0)
    plain = EDMPrecond(ResidualMLP((1, 8, 8), width=32, blocks=1))
    plain.card = ModelCard(objective="consistency", mid_t=(0.8,))
    prepare(edm_zip(tmp_path / "a.zip", pixels(16, 8, 8), [0] * 16), tmp_path / "one", PrepareOptions())
    source = tmp_path / "one"
    folder = store.save(plain, tmp_path / "plain")
    model = store.load(folder)
    model.card = model.card.updated(start_from={"path": str(path)})
    model.save(tmp_path / "tuned")
    options = {
        "data": str(source),
        "samples": 8,
        "metrics": ("fd",),
        "anchors": True,
        "features": "sixth:raw",
    }
    kinds = [row["kind"] for row in evaluate(tmp_path, tmp_path / "tuned", **options)["anchors"]]
    assert kinds == [TEACHER, FORCED]


@pytest.mark.parametrize("folder", [True, False])
def test_a_name_keeps_what_follows_its_dot_where_it_is_a_folder(folder: bool, tmp_path: Path) -> None:
    paths = [tmp_path / "ect-lr0.0001", tmp_path / "ect-lr0.0003"]
    for path in paths:
        path.mkdir() if folder else path.touch()
    assert names(paths) == (["ect-lr0.0001", "ect-lr0.0003"] if folder else ["ect-lr0", "ect-lr0-2"])
