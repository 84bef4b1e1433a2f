"""A run that diverges stores nothing of it, ends with status 1, and says where and what to try."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from consistune.errors import UserError
from consistune.interop.export import export_model
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import read_recipe
from consistune.recipe.plan import Given, make_plan
from consistune.system.processes import Processes
from consistune.training.metrics_file import MetricsFile
from consistune.training.soundness import Soundness
from tests.support.command import run_main

KEYS = ["network={kind: mlp, width: 8, blocks: 1}", "train.batch=64", "train.log_images=64"]


@pytest.mark.parametrize(
    ("rate", "images"), [("1e30", 640), ("1e3", 1280), ("1e3", 64), ("3e38", 64), ("10", 640)]
)
@pytest.mark.parametrize("checkpoints", [64, 320, 100_000])
def test_a_rate_that_destroys_the_weights_ends_the_run_and_nothing_is_stored(
    tmp_path: Path, rate: str, images: int, checkpoints: int
) -> None:
    run = tmp_path / "run"
    keys = [*KEYS, f"train.images={images}", f"optimizer.lr={rate}", f"train.checkpoint_images={checkpoints}"]
    done = run_main("train", "digits-edm", *keys, "--out", run)
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("consistune: diverged at step ")
    for text in ("step ", "loss ", "checkpoint", "try a lower optimizer.lr"):
        assert text in line
        assert text in (run / "log.txt").read_text()
    assert not (run / "model").exists()
    for path in run.rglob("*.pt"):
        state = torch.load(path, weights_only=True)
        for value in state["model"].values():
            assert float(value.abs().max()) <= 1e6
    for text in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_sound() -> None:
    layer = nn.Linear(2, 2)
    watch = Soundness([layer], Processes(torch.device("cpu")))
    for loss in [1.0] * 8 + [float("nan")] * 3 + [50.0] * 8:  # a few skipped steps, and a loss that grows
        watch.follow(loss)
    assert watch.fault() is None
    for _ in range(32):
        watch.follow(1e5)
    assert "median loss grew" in str(watch.fault())
    for _ in range(32):
        watch.follow(float("inf"))
    assert "not finite" in str(watch.fault())


def test_a_loss_that_explodes_within_the_first_steps_is_compared_with_the_first() -> None:
    watch = Soundness([nn.Linear(2, 2)], Processes(torch.device("cpu")))
    for loss in [1.5] + [4e5] * 9:
        watch.follow(loss)
    assert "median loss grew" in str(watch.fault())


@pytest.mark.parametrize(
    "losses",
    [
        [-3.0] * 20 + [0.2] * 20,
        [0.0] + [1.0] * 20,
        [1.0, 9.0, 0.01] * 9,
        [-0.05] * 20 + [1e-4] * 40 + [0.05] * 40,
    ],
)
def test_losses_that_are_negative_or_zero_or_scatter_are_sound(losses: list[float]) -> None:
    watch = Soundness([nn.Linear(2, 2)], Processes(torch.device("cpu")))
    for loss in losses:
        watch.follow(loss)
        assert watch.fault() is None


def test_the_result_of_a_few_steps_that_were_all_skipped_is_refused() -> None:
    watch = Soundness([nn.Linear(2, 2)], Processes(torch.device("cpu")))
    watch.follow(float("nan"))
    assert watch.fault() is None
    assert watch.fault(finished=True) == "most of the last losses are not finite"


def test_weights_that_explode_in_a_step_with_a_finite_loss_are_seen() -> None:
    layer, average = nn.Linear(2, 2), nn.Linear(2, 2)
    watch = Soundness([layer, average], Processes(torch.device("cpu")))
    watch.follow(1.0)
    with torch.no_grad():
        layer.weight[0, 0] = 90.0
        assert watch.fault() is None
        layer.weight[0, 0] = 1e6
        assert "largest weight of a tensor grew from 90 to 1e+06" in str(watch.fault())
        layer.weight[0, 0] = 0.0
        average.bias[1] = torch.nan
    assert watch.fault() == "weights are not finite"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_model_that_is_not_finite_is_no_start_no_teacher_and_not_stored(
    tmp_path: Path, value: float
) -> None:
    sick, sound = (EDMPrecond(ResidualMLP((1, 8, 8), width=8, blocks=1)) for _ in range(2))
    with torch.no_grad():
        next(sick.parameters())[0] = value
    sick.card = sound.card = ModelCard(objective="diffusion")
    names = ["start_from=null", "estimator={kind: teacher, model: sick}", "conditional=false"]
    recipe = read_recipe("digits-ect", names)
    for given, place in (
        (Given(None, sick, sound), "a model in memory"),
        (Given(None, sound, sick), "estim"),
    ):
        with pytest.raises(
            UserError, match=f"^{place}.*not finite, beginning with 'model.map_hidden.weight'"
        ):
            make_plan(recipe, given=given).trainer()
    with pytest.raises(UserError, match="not finite"):
        store.save(sick, tmp_path / "model")
    save_file(sick.state_dict(), store.save(sound, tmp_path / "stored") / store.WEIGHTS)
    config = json.loads((tmp_path / "stored" / store.CONFIG).read_text())
    del config["meta"][store.DIGEST]
    (tmp_path / "stored" / store.CONFIG).write_text(json.dumps(config))
    with pytest.raises(UserError, match="not finite"):
        export_model(tmp_path / "stored", tmp_path / "export.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["stored"]


def test_a_number_that_is_not_finite_is_null_in_the_log(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.append({"images": 64, "step": 1, "loss": float("inf")})
    assert json.loads(file.path.read_text()) == {"images": 64, "step": 1, "loss": None}
    assert str(file.records()[0]["loss"]) == "nan"
    file.truncate(64)
    assert json.loads(file.path.read_text()) == {"images": 64, "step": 1, "loss": None}
