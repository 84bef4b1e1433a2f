"""The loop: exact continuation, honest counting, averages that follow their formula."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import ScoreIdentity
from consistune.core.objectives import Consistency, Draws, Objective
from consistune.core.types import Batch, Condition
from consistune.data.images import digits
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.training.ema import GrowingAverage
from consistune.training.loop import Trainer, TrainingDiverged
from consistune.training.order import EpochOrder

KEYS = {
    "digits-edm": ["network={kind: mlp, width: 16, blocks: 1, dropout: 0.2}"],
    "digits-ect": ["network={kind: mlp, width: 16, blocks: 1, dropout: 0.2}", "start_from=null"],
    "digits-cm": ["network={kind: mlp, width: 16, blocks: 1, dropout: 0.2}", "start_from=null"],
    "digits-sct": ["network={kind: mlp, width: 16, blocks: 1, dropout: 0.2}", "start_from=null"],
}


def trainer(name: str, *keys: str) -> Trainer:
    keys = (*KEYS[name], "train.images=640", "train.batch=64", *keys)
    return make_plan(read_recipe(name, keys)).trainer()


def tensors(tree: object) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [t for value in tree.values() for t in tensors(value)]
    if isinstance(tree, list | tuple):
        return [t for value in tree for t in tensors(value)]
    return []


@pytest.mark.parametrize("name", sorted(KEYS))
def test_a_split_run_equals_the_unbroken_one_bit_for_bit(name: str) -> None:
    unbroken = trainer(name)
    losses = [report.loss for report in unbroken.steps()]
    first = trainer(name)
    steps = first.steps()
    early = [next(steps).loss for _ in range(4)]
    state = copy.deepcopy(first.state_dict())
    torch.manual_seed(123)  # whatever happens in between must not matter
    second = trainer(name)
    second.load_state_dict(state)
    late = [report.loss for report in second.steps()]
    assert early + late == losses
    assert len(tensors(unbroken.state_dict())) > 20
    for a, b in zip(tensors(unbroken.state_dict()), tensors(second.state_dict()), strict=True):
        assert torch.equal(a, b)


def test_every_counter_is_part_of_the_state() -> None:
    """Also how often the run went back to a checkpoint, on which the seeds depend."""
    counters = ("step", "images", "nonfinite_total", "nonfinite_in_a_row", "rollbacks")
    first, second = trainer("digits-edm"), trainer("digits-edm")
    for value, name in enumerate(counters, start=1):
        setattr(first, name, value)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [getattr(second, name) for name in counters] == [1, 2, 3, 4, 5]


def test_every_part_of_a_batch_draws_its_own_dropout_masks() -> None:
    run = trainer("digits-edm", "train.microbatch=16")
    seeds: list[int] = []
    run.step_loss.register_forward_pre_hook(lambda *_: seeds.append(torch.initial_seed()))
    next(run.steps())
    assert len(set(seeds)) == len(seeds) == 4


def weights_of(trainer: Trainer) -> dict[str, object]:
    return {key: trainer.state_dict()[key] for key in ("model", "optimizer", "averages", "by_time")}


def test_another_seed_is_another_run() -> None:
    losses = [[r.loss for r in trainer("digits-ect", f"train.seed={seed}").steps()] for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_training_lowers_the_loss() -> None:
    reports = list(trainer("digits-edm", "train.images=38_400", "optimizer.lr=3e-3").steps())
    assert sum(r.loss for r in reports[-50:]) < 0.75 * sum(r.loss for r in reports[:50])


def poisoned(trainer: Trainer, bad: Callable[[int], bool]) -> Trainer:
    """Make the loss NaN at the steps that `bad` names."""
    inner = trainer.objective

    class Poisoned(Objective):
        def draw(self, *args: object) -> Draws:
            return inner.draw(*args)  # type: ignore[arg-type]

        def losses(self, *args: object) -> Tensor:
            return inner.losses(*args) * (torch.nan if bad(trainer.step) else 1)  # type: ignore[arg-type]

    trainer.objective = Poisoned()
    return trainer


def test_a_nonfinite_step_changes_nothing_and_is_counted() -> None:
    run = poisoned(trainer("digits-edm"), lambda step: step == 2)
    before: list[Tensor] = []
    for report in run.steps():
        if report.step == 2:
            before = [t.clone() for t in tensors(weights_of(run))]
        if report.step == 3:
            assert not report.finite
            assert report.nonfinite_total == 1
            for a, b in zip(before, tensors(weights_of(run)), strict=True):
                assert torch.equal(a, b)
    assert run.nonfinite_total == 1
    assert run.images == 640


def test_only_nonfinite_steps_end_the_run() -> None:
    with pytest.raises(TrainingDiverged, match="3 steps in a row"):
        list(poisoned(trainer("digits-edm", "train.max_nonfinite=3"), lambda step: step >= 4).steps())


def test_the_averaged_target_follows_its_schedule() -> None:
    run = trainer("digits-cm", "target={kind: growing-average, total_images: 640}")
    assert run.target_average is not None
    weight = next(run.target_average.model.parameters())
    expected = weight.clone()
    for report in run.steps():
        mu = GrowingAverage(640).decay(report.images - 64)
        assert mu is not None
        expected = mu * expected + (1 - mu) * next(run.model.parameters()).detach()
        assert torch.allclose(weight, expected, atol=1e-6)
    assert run.target_average.model.training


def test_flips_and_hidden_labels_reach_the_objective_as_said() -> None:
    run = trainer("digits-sct", "train={images: 64_000, batch: 1000, x_flip: true, label_dropout: 0.25}")
    inner = run.objective
    assert isinstance(inner, Consistency)
    assert isinstance(inner.estimator, ScoreIdentity)
    assert inner.estimator.mirrored
    seen: list[Batch] = []
    hidden: list[Tensor] = []

    class Watched(Objective):
        def draw(self, *args: object) -> Draws:
            return inner.draw(*args)  # type: ignore[arg-type]

        def losses(self, student: Any, target: Any, draws: Draws) -> Tensor:
            seen.append(draws.batch)
            given = draws.batch.network_condition
            assert isinstance(given, Condition)
            assert given.label is draws.batch.condition
            assert given.hidden is not None
            hidden.append(given.hidden)
            return inner.losses(student, target, draws)

    run.objective = Watched()
    next(run.steps())
    plain = digits().train.batch(seen[0].index, conditional=True)  # type: ignore[arg-type]
    assert torch.equal(plain.condition, seen[0].condition)  # references keep to the label
    same = (plain.x_0 == seen[0].x_0).flatten(1).all(1)
    mirrored = (plain.x_0.flip(-1) == seen[0].x_0).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 0.4 < mirrored.double().mean() < 0.6
    assert 0.2 < hidden[0].double().mean() < 0.3


def test_a_hidden_label_is_no_label() -> None:
    model = make_plan(read_recipe("digits-sct", KEYS["digits-sct"])).model.eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t, labels = torch.randn(4, 1, 8, 8), torch.ones(4), torch.tensor([1, 2, 3, 4])
    hidden = torch.tensor([True, False, True, False])
    found = model(x, t, Condition(labels, hidden))
    assert torch.equal(found[hidden], model(x, t, None)[hidden])
    assert torch.equal(found[~hidden], model(x, t, labels)[~hidden])
    assert not torch.equal(found[0], model(x, t, labels)[0])


def test_every_epoch_shows_every_image_once_and_batches_do_not_matter() -> None:
    order = EpochOrder(100, seed=3)
    whole = order.rows(0, 300)
    for epoch in whole.view(3, 100):
        assert sorted(epoch.tolist()) == list(range(100))
    assert not torch.equal(whole[:100], whole[100:200])
    pieces = torch.cat([EpochOrder(100, seed=3).rows(start, 37) for start in range(0, 296, 37)])
    assert torch.equal(pieces, whole[:296])


def test_another_seed_is_another_order() -> None:
    assert not torch.equal(EpochOrder(100, seed=1).rows(0, 100), EpochOrder(100, seed=2).rows(0, 100))
