"""The dry run's figures against what is known of the model, and what the command says."""

from pathlib import Path

import pytest
import torch
from torch import nn

from consistune.cli.train import train
from consistune.errors import UserError
from consistune.recipe import cost as dryrun
from consistune.recipe import read_recipe
from consistune.recipe.plan import Plan, make_plan

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
    assert not list(tmp_path.iterdir())


def test_what_is_missing_ends_it_in_one_line() -> None:
    with pytest.raises(UserError, match="train it first: consistune train digits-edm"):
        train("digits-sct", ["start_from=runs/digits-edm/nowhere"], device="cpu", dry_run=True)
