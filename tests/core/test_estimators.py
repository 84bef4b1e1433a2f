"""Where x̂_0 comes from: the three estimators and what they have in common."""

import pytest
import torch
from torch import Tensor

from consistune.core.estimators import OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference, dequantise
from consistune.core.types import Batch
from tests.core.posterior.test_mean import pixels
from tests.support.exact import posterior_exact
from tests.support.gaussian import SCHEDULES, Gaussian

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def batch_at(schedule, ratio: float, n: int = 12, classes: int = 3) -> tuple[Tensor, Tensor, Batch]:
    g = torch.Generator().manual_seed(4)
    x_0 = dequantise(pixels(n, seed=5))
    t = schedule.time_at(torch.full((n,), ratio))
    x_t = schedule.diffuse(x_0, torch.randn(x_0.shape, generator=g), t)
    return x_t, t, Batch(x_0, torch.randint(classes, (n,), generator=g), torch.arange(n))


@every_schedule
@pytest.mark.parametrize("ratio", [0.002, 0.5, 80.0])
def test_a_reference_of_one_is_the_one_sample_estimate_to_the_bit(schedule, ratio) -> None:
    x_t, t, batch = batch_at(schedule, ratio, n=1)
    own = ScoreIdentity(schedule, Reference.ungrouped(batch.x_0))
    mini = ScoreIdentity(schedule)
    expected = OneSample().clean(x_t, t, batch)
    assert torch.equal(own.clean(x_t, t, batch), expected)
    assert torch.equal(mini.clean(x_t, t, batch), expected)


@every_schedule
@pytest.mark.parametrize("ratio", [0.05, 1.0, 20.0])
def test_batch_references_are_the_images_of_the_same_class(schedule, ratio) -> None:
    x_t, t, batch = batch_at(schedule, ratio)
    found = ScoreIdentity(schedule).clean(x_t, t, batch)
    for i in range(len(batch)):
        mates = batch.x_0[batch.condition == batch.condition[i]]
        exact = posterior_exact(x_t[i : i + 1], t[i : i + 1], schedule, mates)
        torch.testing.assert_close(found[i : i + 1].double(), exact, rtol=0, atol=1e-6)


def test_without_labels_the_whole_batch_is_the_reference() -> None:
    x_t, t, batch = batch_at(EDM(), 2.0)
    found = ScoreIdentity(EDM()).clean(x_t, t, Batch(batch.x_0))
    torch.testing.assert_close(found.double(), posterior_exact(x_t, t, EDM(), batch.x_0), rtol=0, atol=1e-6)


def test_class_references_are_the_classs_training_images_and_all_is_every_one() -> None:
    x_t, t, batch = batch_at(EDM(), 2.0)
    images, labels = pixels(50, seed=6), torch.randint(3, (50,), generator=torch.Generator().manual_seed(7))
    found = ScoreIdentity(EDM(), Reference.grouped(images, labels)).clean(x_t, t, batch)
    every = ScoreIdentity(EDM(), Reference.ungrouped(images)).clean(x_t, t, batch)
    for i in range(len(batch)):
        mates = images[labels == batch.condition[i]]
        exact = posterior_exact(x_t[i : i + 1], t[i : i + 1], EDM(), mates)
        torch.testing.assert_close(found[i : i + 1].double(), exact, rtol=0, atol=1e-5)
    torch.testing.assert_close(every.double(), posterior_exact(x_t, t, EDM(), images), rtol=0, atol=1e-5)


def test_as_noise_vanishes_it_becomes_the_one_sample_estimate() -> None:
    x_t, t, batch = batch_at(EDM(), 0.002)
    torch.testing.assert_close(ScoreIdentity(EDM()).clean(x_t, t, batch), batch.x_0, rtol=0, atol=2e-2)


def test_the_teacher_is_asked_with_the_condition_and_learns_nothing() -> None:
    weight = torch.ones((), requires_grad=True)
    asked = []

    def model(x_t, t, condition=None):
        asked.append(condition)
        return weight * Gaussian(EDM()).denoise(x_t, t)

    x_t, t, batch = batch_at(EDM(), 1.0)
    found = Teacher(model).clean(x_t, t, batch)
    assert not found.requires_grad
    assert torch.equal(found, Gaussian(EDM()).denoise(x_t, t))
    assert torch.equal(asked[0], batch.condition)


def test_grouped_references_need_labels() -> None:
    x_t, t, batch = batch_at(EDM(), 1.0)
    grouped = ScoreIdentity(EDM(), Reference.grouped(pixels(6), torch.tensor([0, 0, 1, 1, 2, 2])))
    with pytest.raises(ValueError, match="no labels"):
        grouped.clean(x_t, t, Batch(batch.x_0))
