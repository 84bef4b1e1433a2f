"""Randomness that can be named: seeds, one generator an image, one dropout mask a pair of passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import dropout

from consistune.core.rng import Between, ImageNoise, SharedDropout, mix_seed
from tests.support.toy import fixtures, named


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=12, unique=True), st.integers(1, 3))
def test_an_images_noise_depends_on_its_seed_alone(seeds: list[int], split: int) -> None:
    together = ImageNoise(seeds)
    apart = [ImageNoise(seeds[i : i + split]) for i in range(0, len(seeds), split)]
    for _ in range(2):  # the second block too
        assert torch.equal(together(3, 2), torch.cat([noise(3, 2) for noise in apart]))


def test_between_two_seeds_noise_turns_from_one_to_the_other_and_stays_standard_normal() -> None:
    noise = ImageNoise([7, Between(7, 8, 0.0), Between(7, 8, 0.5), Between(7, 8, 1.0), 8])
    for _ in range(2):  # the second block too
        first, start, middle, end, second = noise(100_000)
        assert torch.equal(start, first)
        assert torch.equal(end, second)
        assert abs(float(middle.square().mean()) - 1) < 0.02
        for own in (first, second):
            assert abs(float((middle * own).mean()) - 0.5**0.5) < 0.02


@pytest.mark.parametrize("fixture", fixtures("sampler/*"))
def test_per_image_seeding_is_edms(parity, fixture) -> None:
    arrays = parity(fixture)
    for match in named(arrays, r"stacked_seeds_(\d+)_(\d+)"):
        expected, (first, last) = arrays[match[0]], map(int, match.groups())
        assert torch.equal(ImageNoise(range(first, last + 1))(*expected.shape[1:]), expected)


def test_two_passes_share_the_mask_and_leave_the_generator_as_one_pass_would() -> None:
    ones = torch.ones(1000)
    torch.manual_seed(5)
    once = dropout(ones, 0.3)
    after_one = torch.get_rng_state()
    torch.manual_seed(5)
    mask = SharedDropout(ones.device)
    first = dropout(ones, 0.3)
    with mask.again():
        second = dropout(ones, 0.3)
    assert torch.equal(first, second)
    assert torch.equal(first, once)
    assert torch.equal(torch.get_rng_state(), after_one)
    assert not torch.equal(dropout(ones, 0.3), first)


def test_the_generator_is_restored_after_an_error() -> None:
    torch.manual_seed(6)
    dropout(torch.ones(10))
    expected = torch.get_rng_state()
    torch.manual_seed(6)
    try:
        mask = SharedDropout(torch.device("cpu"))
        dropout(torch.ones(10))
        with mask.again():
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), expected)


def test_mixed_seeds_differ_in_every_part() -> None:
    seeds = {mix_seed(a, b, c) for a in range(20) for b in range(20) for c in range(5)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)
