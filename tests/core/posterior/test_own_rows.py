"""References of each query's own: the same mean as from the whole group, and a uniform choice of rows."""

import pytest
import torch

from consistune.core.noise import EDM
from consistune.core.posterior import own_rows
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.core.posterior.own_rows import random_rows
from tests.core.posterior.test_mean import noisy, pixels, relative
from tests.support.exact import posterior_exact


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("ratio", [0.002, 0.1, 3.0, 80.0])
def test_the_mean_over_own_rows_is_the_mean_over_those_images(
    ratio: float, mirrored: bool, kind: str, generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_rows, "GATHERED", 1 << 12)  # a query at a time
    images = pixels(60, shape=(3, 20, 20))  # more values than one exact sum of products may have
    images = images if kind == "uint8" else dequantise(images)
    x_t, t = noisy(images, ratio, n=5)
    rows = torch.stack([torch.randperm(60, generator=generator)[:9] for _ in x_t])
    counted = torch.rand(5, 9, generator=generator) < 0.7
    counted[:, 0] = True
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images), own=(rows, counted), mirrored=mirrored).mean
    for i in range(5):
        mine = images[rows[i][counted[i]]]
        mine = torch.cat([mine, mine.flip(-1)]) if mirrored else mine
        assert relative(found[i : i + 1], posterior_exact(x_t[i : i + 1], t[i : i + 1], EDM(), mine)) < 1e-5


def test_a_query_without_references_has_nan_and_harms_no_other() -> None:
    images = pixels(10)
    x_t, t = noisy(images, 1.0, n=2)
    own = torch.arange(10).repeat(2, 1), torch.tensor([[True], [False]]).expand(2, 10)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images), own=own).mean
    assert bool(found[1].isnan().all())
    assert bool(found[0].isfinite().all())


OFFSETS = torch.tensor([0, 12, 12, 17, 40])


@pytest.mark.parametrize("at_once", [1, 4, 6])
def test_random_rows_are_distinct_of_the_group_and_have_the_own_image(
    at_once: int, generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_rows, "GATHERED", 16 * 23 * at_once)
    index = torch.tensor([3, 11, 12, 16, 17, 39])
    group = torch.bucketize(index, OFFSETS, right=True) - 1
    rows, counted = random_rows(OFFSETS, group, index, 8, 23, generator)
    for i, row in enumerate(index):
        chosen = rows[i][counted[i]].tolist()
        first, last = OFFSETS[group[i]], OFFSETS[group[i] + 1]
        assert len(set(chosen)) == len(chosen) == min(8, last - first)
        assert int(row) in chosen
        assert all(first <= one < last for one in chosen)


def test_the_others_are_uniform_and_each_query_draws_for_itself(generator) -> None:
    counts = torch.zeros(2, 40)
    index, group = torch.tensor([20, 20]), torch.tensor([3, 3])
    alike = 0
    for _ in range(2000):
        rows, counted = random_rows(OFFSETS, group, index, 6, 23, generator)
        assert bool(counted.all())
        counts.scatter_add_(1, rows, torch.ones(rows.shape))
        alike += set(rows[0].tolist()) == set(rows[1].tolist())
    assert counts[:, 20].tolist() == [2000, 2000]
    others = torch.cat([counts[:, 17:20], counts[:, 21:]], 1) / 2000
    torch.testing.assert_close(others, torch.full((2, 22), 5 / 22), rtol=0, atol=0.04)
    assert alike < 20


def test_an_image_outside_its_group_has_no_references(generator) -> None:
    _, counted = random_rows(OFFSETS, torch.tensor([0, 2]), torch.tensor([5, 5]), 4, 23, generator)
    assert counted.any(1).tolist() == [True, False]
