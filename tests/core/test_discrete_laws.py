"""Laws of the objectives with a step t → r, where the flow is known; parts of a batch of trajectories."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, ScoreIdentity, _Subset
from consistune.core.noise import EDM, NoiseSchedule
from consistune.core.objectives import Consistency, Objective, Trajectory, Truncated, Uniform
from consistune.core.posterior.mean import Reference
from consistune.core.posterior.priors import label_prior
from consistune.core.times import LogNormalPairs, SigmoidGap, TruncatedPairs
from consistune.core.types import Batch, Times
from tests.support.gaussian import SCHEDULES, Anisotropic

SHAPE = (1, 2, 2)
RATIOS = torch.tensor([0.02, 0.1, 0.4, 1.5, 3.0, 20.0], dtype=torch.float64)
STD = torch.tensor([[[0.2, 0.5], [0.9, 1.4]]], dtype=torch.float64)
EDGE = 0.01
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@dataclass(frozen=True)
class ExactStep(NoiseEstimator):
    """The x̂_0 with which one Euler step from t ends on the flow at r; with a sign, mirrored at x_t's mean."""

    world: Anisotropic
    flipped: bool = False
    r: Tensor | None = None

    def bind(self, batch: Batch, times: Times, generator: object) -> NoiseEstimator:
        del batch, generator
        return ExactStep(self.world, self.flipped, times.r)

    def clean(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        del batch
        found = self.world(x_t, t, None, self.r)
        return 2 * self.world.mean - found if self.flipped else found


def objective(kind: str, schedule: NoiseSchedule, estimator: NoiseEstimator, world: Anisotropic) -> Objective:
    gap, uniform = SigmoidGap(), Uniform()
    if kind == "truncated":
        pairs = TruncatedPairs(gap, schedule=schedule)
        return Truncated(schedule, estimator=estimator, weight=uniform, pairs=pairs, below=world)
    return Consistency(schedule, LogNormalPairs(gap), estimator, weight=uniform)


@every_schedule
@pytest.mark.parametrize("kind", ["consistency", "phased", "truncated"])
def test_the_exact_solution_is_a_fixed_point(schedule: NoiseSchedule, kind: str) -> None:
    """With exact steps t → r; with the estimate's sign flipped it is none."""
    world, draw = Anisotropic(schedule, STD), torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(6, *SHAPE, generator=draw, dtype=torch.float64) for _ in range(2))
    t = schedule.time_at(RATIOS)
    low = schedule.time_at(torch.full_like(RATIOS, EDGE)) if kind == "phased" else torch.zeros_like(t)
    times = Times(t, torch.maximum(low, 0.9 * t), low)
    right, wrong = (
        objective(kind, schedule, ExactStep(world, flipped), world).at(world, world, Batch(x_0), times, noise)
        for flipped in (False, True)
    )
    assert float(right.max()) < 1e-12
    assert float(wrong.max()) > 0.1


def mini_batch() -> Batch:
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(16, *SHAPE, generator=draw, dtype=torch.float64)
    return Batch(images, torch.randint(3, (16,), generator=draw))


@dataclass(frozen=True)
class OnCard(NoiseEstimator):
    """The batch as references as a card holds them: not grouped, a prior keeps each query to its label."""

    def bind(self, batch: Batch, times: Times | None, generator: object) -> NoiseEstimator:
        del times, generator
        identity = ScoreIdentity(EDM(), Reference.ungrouped(batch.x_0))
        return _Subset(identity, label_prior(batch.condition))


def test_chosen_rows_of_a_part_keep_the_labels_of_their_queries() -> None:
    batch = mini_batch()
    estimator = OnCard().bind(batch, None, None)
    x_t, t = batch.x_0 + 0.5, torch.full((16,), 2.0, dtype=torch.float64)
    whole = estimator.clean(x_t, t, batch)
    for chosen in (torch.tensor([0, 4]), torch.tensor([7, 1, 2])):
        rows = 4 + chosen
        part = estimator.rows(slice(4, 12)).rows(chosen)
        found = part.clean(x_t[rows], t[rows], batch.rows(rows))
        torch.testing.assert_close(found, whole[rows], rtol=1e-12, atol=1e-12)


def test_the_parts_of_a_batch_follow_the_trajectories_of_the_whole() -> None:
    grouped, on_card = (Trajectory(EDM(), each, steps=4) for each in (ScoreIdentity(EDM()), OnCard()))
    noise = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def model(x_t: Tensor, t: Tensor, condition: object = None) -> Tensor:
        return x_t / (1 + t)[:, None, None, None]

    expected = grouped.losses(model, model, grouped.at(mini_batch(), noise))
    draws = on_card.at(mini_batch(), noise)
    for size in (16, 4, 8, 3):
        parts = [draws.rows(slice(k, min(k + size, 16))) for k in range(0, 16, size)]
        losses = torch.cat([on_card.losses(model, model, part) for part in parts])
        torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)


def test_mid_training_of_a_two_time_network_trains_its_jump_to_the_end() -> None:
    batch, asked = mini_batch(), []

    class TwoTimes:
        two_times = True

        def __call__(
            self, x_t: Tensor, t: Tensor, condition: object = None, s: Tensor | None = None
        ) -> Tensor:
            asked.append(s)
            return x_t

    model = TwoTimes()
    cmt = Trajectory(EDM(), ScoreIdentity(EDM()), steps=4)
    cmt.losses(model, model, cmt.at(batch, torch.ones_like(batch.x_0)))
    assert len(asked) == 1
    assert torch.equal(asked[0], torch.zeros(16))
