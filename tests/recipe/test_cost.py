"""The dry run's figures against what is known of the model, and what the command says."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from consistune.cli.train import train
from consistune.errors import UserError
from consistune.nn import store
from consistune.recipe import cost as dryrun
from consistune.recipe import forecast, read_recipe, to_yaml
from consistune.recipe.plan import Plan, make_plan
from consistune.system.processes import Processes
from consistune.training.loop import Trainer
from consistune.training.run import RunFolder

NETWORK = "network={kind: mlp, width: 32, blocks: 2}"


def plan(*keys: str, name: str = "digits-sct") -> Plan:
    return make_plan(read_recipe(name, [NETWORK, "start_from=null", *keys]))


def test_the_parts_are_the_models_sizes() -> None:
    made = plan("train.ema=[0.9, 0.99]", "target={kind: average}", "train.batch=100")
    parameters = sum(p.numel() for p in made.model.parameters())
    found = dryrun.estimate(made)
    assert found.parameters == parameters
    assert found.weights == found.gradients == 4 * parameters
    assert found.averages == 3 * found.weights
    assert 2 * found.weights <= found.optimizer <= 2 * found.weights + 1000  # two moments, and step counts
    assert found.references == 1500 * 64  # the training digits as bytes
    assert found.checkpoint == found.weights + found.optimizer + found.averages
    assert found.memory == (
        found.weights
        + found.gradients
        + found.optimizer
        + found.averages
        + found.references
        + 100 * found.activations
    )
    assert found.seconds > 0


def test_nothing_is_kept_of_references_that_are_not_there() -> None:
    assert dryrun.estimate(plan(name="digits-ect")).references == 0


def test_references_are_counted_inside_other_parts() -> None:
    """Under another noise schedule, inside a blend, and in both: the training digits as bytes."""
    flow = "schedule={kind: rectified-flow}"
    inner = "{kind: score-identity, reference: class}"
    blend = f"estimator={{kind: blend, estimator: {inner}}}"
    for keys in ([flow], [blend], [flow, blend]):
        assert dryrun.estimate(plan(*keys)).references == 1500 * 64
    of_the_batch = "estimator={kind: blend, estimator: {kind: score-identity, reference: batch}}"
    assert dryrun.estimate(plan(of_the_batch)).references == 0


def test_activations_are_what_autograd_keeps() -> None:
    """Two layers keep their inputs and the activation its own: 8·10 + 8·20 + 8·20 numbers of 4 bytes."""
    model = nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 5))
    x = torch.randn(8, 10)
    with dryrun.kept_for_gradient(model) as kept:
        model(x).sum()
    assert kept[0] == 4 * 8 * (10 + 20)  # the sigmoid's output is the second layer's input: one storage


def test_activations_grow_with_the_network_not_with_the_batch() -> None:
    narrow, wide = plan("train.batch=10"), plan("train.batch=200")
    assert dryrun.estimate(narrow).activations == dryrun.estimate(wide).activations
    deep = make_plan(
        read_recipe("digits-sct", ["network={kind: mlp, width: 32, blocks: 6}", "start_from=null"])
    )
    assert dryrun.estimate(deep).activations > 1.5 * dryrun.estimate(narrow).activations


def test_the_command_says_it_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = ["train.ema=[{kind: power, std: 0.05}]", "train.ema_snapshot_images=100_000"]
    train("digits-edm", keys, device="cpu", dry_run=True)
    said = capsys.readouterr().out
    for word in ("parameters", "1,830,464", "images/s", "runs/digits-edm/", "8 files", "25%, 50%, 75%"):
        assert word in said
    assert re.search(r"time, about +[\d.]+ (s|min|h|days) on one cpu", said)
    assert re.search(r"disk, at the end +[\d.]+ MiB of [\d.,]+ GiB free *\n", said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("images", [1, 16, 32])
def test_a_training_of_a_step_or_two_is_foretold_too(
    images: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [
        f"train={{images: {images}, batch: 16, snapshots: []}}",
        "network={kind: mlp, width: 8, blocks: 1}",
    ]
    train("digits-edm", keys, device="cpu", dry_run=True)
    assert "images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({}, "a run is there already"),
        ({"out": "new", "resume": True}, "no run to continue"),
        ({"recipe": "run", "until": 100}, "has seen 128 images already"),
        ({"recipe": "run", "overrides": ["optimizer.lr=0.5"]}, "the recipe differs"),
    ],
)
def test_a_dry_run_is_refused_where_the_run_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [NETWORK, "train={images: 128, batch: 64, snapshots: [], trackers: []}"]
    given = {"recipe": "digits-edm", "overrides": [] if "recipe" in words else keys, "out": None, **words}
    train("digits-edm", keys, out=Path("run"), device="cpu")
    before = sorted(tmp_path.rglob("*"))
    given["out"] = Path(given["out"] or "run")
    with pytest.raises(UserError, match=said):
        train(**given, device="cpu", dry_run=True)
    train("run", device="cpu", dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_missing_ends_it_in_one_line() -> None:
    with pytest.raises(UserError, match="train it first: consistune train digits-edm"):
        train("digits-sct", ["start_from=runs/digits-edm/nowhere"], device="cpu", dry_run=True)


def test_a_teachers_weights_are_counted_once_and_the_students_are_not_one(tmp_path: Path) -> None:
    made = plan()
    store.save(plan(name="digits-edm").model, tmp_path / "teacher")
    teacher = f"estimator={{kind: teacher, model: {tmp_path / 'teacher'}}}"
    distilled = dryrun.estimate(plan(teacher))
    assert distilled.teachers == distilled.weights
    assert distilled.references == 0
    under_another_schedule = dryrun.estimate(plan(teacher, "schedule={kind: rectified-flow}"))
    assert under_another_schedule.teachers == distilled.weights
    tuned = dryrun.estimate(made)
    assert tuned.teachers == 0
    assert distilled.fixed == tuned.fixed - tuned.references + distilled.teachers


def test_the_largest_batch_fills_the_usable_memory_and_no_more() -> None:
    found = dryrun.estimate(plan())
    most = found.largest_batch(1 << 30)
    assert found.fixed + most * found.activations <= dryrun.USABLE * (1 << 30)
    assert found.fixed + (most + 1) * found.activations > dryrun.USABLE * (1 << 30)
    assert found.largest_batch(found.fixed) == 0


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 << 30), ("24 GB", 24 * 10**9), ("1.5KiB", 1536), ("100", 100)]
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert dryrun.memory_size(text) == size


@pytest.mark.parametrize("text", ["", "eighty", "80 gigs", "-1GiB", "0GiB", "80GiBs"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--memory"):
        dryrun.memory_size(text)


def test_the_dry_run_names_the_batch_for_a_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train("digits-edm", [NETWORK], device="cpu", dry_run=True, memory="1GiB")
    assert re.search(r"1\.00 GiB have room for, about +[\d,]{5,} images at a time", capsys.readouterr().out)
    train("digits-edm", [NETWORK], device="cpu", dry_run=True, memory="64KiB")
    assert "not one image" in capsys.readouterr().out
    train("digits-edm", [NETWORK], device="cpu", dry_run=True)
    assert "have room" not in capsys.readouterr().out


NO_ROOM = (torch.OutOfMemoryError("no room"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED in cublasCreate"))


@pytest.fixture(params=NO_ROOM, ids=("torch", "cuBLAS"))
def small_card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[int]:
    """A device on which a step on more than 13 images has no room; the sizes that were tried."""
    tried: list[int] = []
    step = Trainer._step

    def limited(self: Trainer, stop: bool) -> object:
        tried.append(self.options.batch)
        if (self.options.microbatch or self.options.batch) > 13:
            raise request.param
        return step(self, stop)

    monkeypatch.setattr(Trainer, "_step", limited)
    return tried


def test_the_micro_batch_is_the_first_half_that_fits(small_card: list[int]) -> None:
    made = plan("train.batch=100", "train.microbatch=50")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert dryrun.fitting_microbatch(made, Processes(torch.device("cpu"))) == 13
    assert small_card == [100, 50, 25, 13, 13]
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
    assert dryrun.fitting_microbatch(plan("train.batch=12"), Processes(torch.device("cpu"))) == 12


def test_a_device_without_room_for_one_image_is_refused(
    small_card: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dryrun, "memory_of", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1)
    with pytest.raises(UserError, match="one image does not fit"):
        dryrun.fitting_microbatch(plan("train.batch=4"), Processes(torch.device("cpu")))
    assert small_card == [4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch": "128"}, "write train.batch=N"),
        ({"batch": "auto"}, "write train.microbatch=N"),
        ({"batch": "auto", "dry_run": True}, "a run that begins"),
        ({"memory": "1GiB"}, "add --dry-run"),
    ],
)
def test_options_without_effect_are_refused(options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train("digits-edm", [NETWORK], device="cpu", **options)


def test_a_micro_batch_is_found_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistune.cli.train.pick_device", lambda _: torch.device("cuda"))
    with pytest.raises(UserError, match="leave one of the two out"):
        train("digits-edm", [NETWORK, "train.microbatch=8"], batch="auto")


def test_the_run_keeps_the_micro_batch_that_was_found(
    small_card: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consistune.cli.train._check_batch", lambda *_: None)  # as on a card
    keys = [NETWORK, "train.batch=16", "train.images=32", "train.snapshots=[]"]
    train("digits-edm", keys, out=tmp_path / "run", device="cpu", batch="auto")
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train"]["microbatch"] == 8
    assert small_card == [16, 8, 8, 16, 16]


def test_the_forecast_of_the_disk_is_what_a_run_leaves(tmp_path: Path) -> None:
    keys = (
        "train.images=640", "train.batch=64", "train.trackers=[]", "train.checkpoint_images=128",
        "train.ema=[{kind: power, std: 0.05}, 0.9]", "train.ema_snapshot_images=128",
    )  # fmt: skip
    made = plan(*keys, name="digits-edm")
    found = dryrun.estimate(plan(*keys, name="digits-edm"))
    run = RunFolder(tmp_path / "run", to_yaml(read_recipe("digits-edm", [NETWORK, *keys])), resume=False)
    list(run.steps(made.trainer()))
    written = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert forecast.disk_bytes(made, found) == pytest.approx(written, rel=0.1)


def test_the_timed_steps_are_of_the_recipes_size_and_change_no_weight() -> None:
    made = plan("train.batch=96", "train.microbatch=32")
    found = dryrun.estimate(made)
    before = [p.clone() for p in made.model.parameters()]
    for seconds, images in (
        (1e-6, 32),
        (2.5, 2),
        (1e3, 1),
    ):  # of one image: where it is slow, fewer are timed
        timed = replace(found, seconds=seconds)
        rate, count = forecast.images_per_second(made, timed, torch.device("cpu"))
        assert count == images
        assert rate > 0
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_stages_and_durations_are_said_in_plain_units() -> None:
    recipe = read_recipe("digits-sct")
    assert dict(forecast.stages(recipe)) == {"stages": "6 of 32,000 images (pairs.gap.every_images)"}
    assert not list(forecast.stages(read_recipe("digits-edm")))
    said = [forecast.duration(seconds) for seconds in (5, 90, 5400, 86_400, 250_000)]
    assert said == ["5 s", "1.5 min", "1.5 h", "24.0 h", "2.9 days"]


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan("train.batch=8")
    monkeypatch.setattr(forecast, "free_bytes", lambda folder: 1000)
    rows = forecast.forecast(
        read_recipe("digits-sct"), made, dryrun.estimate(made), tmp_path, torch.device("cpu")
    )
    assert "that is too little" in dict(rows)["disk, at the end"]
