"""Random references and continuous conditions: which images count, checked one query at a time."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistune.core.estimators import Blend, OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference, dequantise
from consistune.core.posterior.priors import kernel_prior, random_subset
from consistune.core.types import Batch, Times
from tests.core.posterior.test_mean import pixels
from tests.support.exact import posterior_exact
from tests.support.gaussian import SCHEDULES, Gaussian

LABELS = torch.tensor([0] * 12 + [1] * 5 + [2] + [3] * 22)
BANK = Reference.grouped(pixels(40, seed=1), LABELS)


def batch_of(rows: list[int], ratio: float = 3.0) -> tuple[Tensor, Tensor, Batch, Times]:
    g = torch.Generator().manual_seed(0)
    index = torch.tensor(rows)
    x_0 = dequantise(BANK.images[index])
    t = torch.full((len(rows),), ratio)
    times = Times(t, t / 2, 0 * t)
    return (
        EDM().diffuse(x_0, torch.randn(x_0.shape, generator=g), t),
        t,
        Batch(x_0, LABELS[index], index),
        times,
    )


@given(st.lists(st.integers(0, 39), min_size=1, max_size=16), st.integers(1, 30), st.integers(0, 20))
def test_the_own_image_is_there_once_and_the_others_are_distinct(rows, size, seed) -> None:
    index = torch.tensor(rows)
    subset, prior = random_subset(BANK, LABELS[index], index, size, torch.Generator().manual_seed(seed))
    for i, row in enumerate(rows):
        c = int(LABELS[row])
        first, last = subset.offsets[c], subset.offsets[c + 1]
        counted = subset.images[first:last][prior(torch.tensor([i]), first, last)[0] == 0].flatten(1)
        group = BANK.images[BANK.offsets[c] : BANK.offsets[c + 1]].flatten(1)
        found = (counted[:, None] == group).all(2)
        assert len(counted) == min(size, len(group))
        assert bool(found.any(1).all())  # all from the class
        assert len(torch.unique(counted, dim=0)) == len(counted)  # none twice
        assert bool((counted == BANK.images[row].flatten()).all(1).any())  # the own one


def test_the_other_references_are_uniform(generator) -> None:
    counts = torch.zeros(22)
    index = torch.tensor([20, 30])  # two queries of class 3, rows 18 … 39
    for _ in range(3000):
        subset, prior = random_subset(BANK, LABELS[index], index, 6, generator)
        first, last = subset.offsets[3], subset.offsets[4]
        counted = subset.images[first:last][prior(torch.tensor([0]), first, last)[0] == 0].flatten(1)
        counts += (counted[:, None] == BANK.images[18:].flatten(1)).all(2).any(0)
    assert counts[2] == 3000
    others = torch.cat([counts[:2], counts[3:]])
    torch.testing.assert_close(others / 3000, torch.full((21,), 5 / 21), rtol=0, atol=0.035)


@pytest.mark.parametrize("ratio", [0.01, 1.0, 30.0])
def test_enough_random_references_are_the_class(ratio) -> None:
    x_t, t, batch, times = batch_of([0, 3, 13, 17, 20, 39], ratio)
    bound = ScoreIdentity(EDM(), BANK, size=22).bind(batch, times, torch.Generator().manual_seed(0))
    expected = ScoreIdentity(EDM(), BANK).clean(x_t, t, batch)
    torch.testing.assert_close(bound.clean(x_t, t, batch), expected, rtol=0, atol=1e-6)


def test_one_random_reference_is_the_one_sample_estimate_to_the_bit() -> None:
    x_t, t, batch, times = batch_of([0, 3, 13, 17, 20, 39])
    bound = ScoreIdentity(EDM(), BANK, size=1).bind(batch, times, torch.Generator())
    assert torch.equal(bound.clean(x_t, t, batch), batch.x_0)


def test_random_references_stay_the_same_along_a_path_and_change_between_steps(generator) -> None:
    x_t, t, batch, times = batch_of([18, 25, 39])
    identity = ScoreIdentity(EDM(), BANK, size=5)
    bound = identity.bind(batch, times, generator)
    assert torch.equal(bound.clean(x_t, t, batch), bound.clean(x_t, t, batch))
    assert not torch.equal(
        bound.clean(x_t, t, batch), identity.bind(batch, times, generator).clean(x_t, t, batch)
    )


def test_random_references_of_one_mirrored_image() -> None:
    x_t, t, batch, times = batch_of([0, 17], 50.0)
    bound = ScoreIdentity(EDM(), BANK, size=1, mirrored=True).bind(batch, times, torch.Generator())
    for i in range(2):
        both = torch.stack([batch.x_0[i], batch.x_0[i].flip(-1)])
        exact = posterior_exact(x_t[i : i + 1], t[i : i + 1], EDM(), both)
        torch.testing.assert_close(bound.clean(x_t, t, batch)[i : i + 1].double(), exact, rtol=0, atol=1e-5)


# Continuous conditions ------------------------------------------------------------------------------------

EMBEDDINGS = torch.randn(40, 4, generator=torch.Generator().manual_seed(9))
CONTINUOUS = Reference(BANK.images, (0, 40), EMBEDDINGS)


def continuous(ratio: float = 3.0) -> tuple[Tensor, Tensor, Batch]:
    x_t, t, batch, _ = batch_of([0, 7, 13, 39], ratio)
    return x_t, t, Batch(batch.x_0, EMBEDDINGS[batch.index], batch.index)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 4.0])
def test_a_kernel_weighs_references_by_their_condition(bandwidth) -> None:
    x_t, t, batch = continuous()
    prior = -(torch.cdist(batch.condition, EMBEDDINGS).double() ** 2) / (2 * bandwidth**2)
    found = ScoreIdentity(EDM(), CONTINUOUS, bandwidth=bandwidth).clean(x_t, t, batch)
    exact = posterior_exact(x_t, t, EDM(), BANK.images, prior)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_only_the_nearest_conditions_count(mirrored) -> None:
    x_t, t, batch = continuous(30.0)
    nearest = torch.cdist(batch.condition, EMBEDDINGS).topk(6, largest=False).indices
    found = ScoreIdentity(EDM(), CONTINUOUS, nearest=6, mirrored=mirrored).clean(x_t, t, batch)
    for i in range(4):
        images = BANK.images[nearest[i]]
        images = torch.cat([images, images.flip(-1)]) if mirrored else images
        exact = posterior_exact(x_t[i : i + 1], t[i : i + 1], EDM(), images)
        torch.testing.assert_close(found[i : i + 1].double(), exact, rtol=0, atol=1e-5)


def test_a_narrow_kernel_leaves_the_own_image_and_a_wide_one_ignores_the_condition() -> None:
    x_t, t, batch = continuous(10.0)
    narrow = ScoreIdentity(EDM(), CONTINUOUS, bandwidth=1e-3).clean(x_t, t, batch)
    torch.testing.assert_close(narrow, batch.x_0, rtol=0, atol=1e-6)
    one = ScoreIdentity(EDM(), CONTINUOUS, nearest=1).clean(x_t, t, batch)
    torch.testing.assert_close(one, batch.x_0, rtol=0, atol=1e-6)
    wide = ScoreIdentity(EDM(), CONTINUOUS, bandwidth=1e6).clean(x_t, t, batch)
    every = posterior_exact(x_t, t, EDM(), BANK.images)
    torch.testing.assert_close(wide.double(), every, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bandwidth", [1e-200, 1e-20, 1e200])
def test_however_wide_a_kernel_some_reference_counts(bandwidth) -> None:
    """A condition that none of the bank's equals has the nearest ones' mean, or all references' mean."""
    bank = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    prior = kernel_prior(bank, torch.tensor([[1.2]], dtype=torch.float64), bandwidth)
    weights = torch.softmax(prior(torch.tensor([0]), 0, 3), 1)
    expected = [[0.0, 1.0, 0.0]] if bandwidth < 1 else [[1 / 3] * 3]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


def test_a_kernels_bias_falls_with_the_square_of_its_bandwidth() -> None:
    """x_0 = sin(c)/2, at the prior: the kernel's mean is e^{−h²/2}·sin(c)/2, so off by h²/2 of it."""
    g = torch.Generator().manual_seed(0)
    c = (torch.rand(60_000, 1, generator=g, dtype=torch.float64) * 2 - 1) * math.pi
    x_0 = (0.5 * c.sin()).view(-1, 1, 1, 1)
    bank = Reference(x_0, (0, len(c)), c)
    query = torch.tensor([[math.pi / 2], [0.9]], dtype=torch.float64)
    x_t, t = torch.zeros(2, 1, 1, 1, dtype=torch.float64), torch.full((2,), 1e4, dtype=torch.float64)
    truth = 0.5 * query.sin().view(-1)
    bias = []
    for h in (0.4, 0.2):
        found = ScoreIdentity(EDM(), bank, bandwidth=h).clean(x_t, t, Batch(x_t, query)).view(-1)
        bias.append(found - truth)
        torch.testing.assert_close(found - truth, truth * (math.exp(-(h**2) / 2) - 1), rtol=0.1, atol=2e-3)
    torch.testing.assert_close(
        bias[0] / bias[1], torch.full((2,), 4.0, dtype=torch.float64), rtol=0.25, atol=0
    )


# Blends, teachers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_blend_goes_from_the_estimate_to_the_one_sample_as_the_gap_closes(schedule) -> None:
    x_0 = dequantise(pixels(5))
    ratios = torch.full((5,), 2.0, dtype=torch.float64)
    t = schedule.time_at(ratios)
    r = schedule.time_at(ratios * torch.tensor([0.0, 0.5, 0.9, 0.95, 1 - 1e-9], dtype=torch.float64))
    gaussian = Teacher(Gaussian(schedule).denoise)
    x_t = schedule.diffuse(x_0, torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0)), t)
    batch, times = Batch(x_0), Times(t, r, 0 * r)
    found = Blend(schedule, gaussian, full_gap=0.1).bind(batch, times, None).clean(x_t, t, batch)
    full = gaussian.clean(x_t, t, batch)
    rho = torch.tensor([1, 1, 1, 0.5, 0], dtype=torch.float64).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, rho * full + (1 - rho) * x_0, rtol=0, atol=1e-6)


def test_a_guided_teacher_is_classifier_free_guidance() -> None:
    def model(x_t, t, condition=None):
        return x_t * (0.5 if condition is None else 0.8)

    x_t, t, batch, _ = batch_of([0, 1])
    found = Teacher(model, guidance=1.5).clean(x_t, t, batch)
    torch.testing.assert_close(found, (0.5 + 1.5 * 0.3) * x_t)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ScoreIdentity(EDM(), BANK, size=0), "at least 1"),
        (lambda: ScoreIdentity(EDM(), size=3), "reference set"),
        (lambda: ScoreIdentity(EDM(), bandwidth=1.0, nearest=3), "not both"),
        (lambda: ScoreIdentity(EDM(), bandwidth=0.0), "positive"),
        (lambda: ScoreIdentity(EDM(), nearest=0), "at least 1"),
        (lambda: ScoreIdentity(EDM(), BANK, size=3, nearest=3), "by class"),
        (lambda: Blend(EDM(), OneSample(), full_gap=0.0), "full_gap"),
        (lambda: ScoreIdentity(EDM(), BANK, size=3).clean(*batch_of([0])[:3]), "bind"),
        (lambda: Blend(EDM(), OneSample()).clean(*batch_of([0])[:3]), "bind"),
        (lambda: ScoreIdentity(EDM(), BANK, size=3).bind(*batch_of([0])[2:], None), "generator"),
        (
            lambda: ScoreIdentity(EDM(), BANK, size=3).bind(
                Batch(torch.zeros(1, 3, 8, 8), torch.tensor([1]), torch.tensor([0])),
                batch_of([0])[3],
                torch.Generator(),
            ),
            "rows outside it",
        ),
        (
            lambda: ScoreIdentity(EDM(), BANK, nearest=3).clean(*batch_of([0])[:3]),
            "continuous",
        ),
        (lambda: ScoreIdentity(EDM(), CONTINUOUS, nearest=3).clean(*batch_of([0])[:3]), "floating point"),
        (lambda: ScoreIdentity(EDM()).clean(*continuous()), "bandwidth"),
        (lambda: kernel_prior(torch.zeros(3, 2), torch.full((1, 2), torch.nan), 1.0), "NaN"),
    ],
)
def test_what_does_not_go_together_is_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
