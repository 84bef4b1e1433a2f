"""EDM's augmentation against the published implementation's numbers, and against what it must leave alone."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from consistune.data.images import digits
from consistune.errors import UserError
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.training.augment import LABELS, SYM6, augment, rotation, scaling, translation, warp
from tests.support.recorded import assert_recorded, inputs


@pytest.fixture(scope="session")
def published(shared: Path) -> dict[str, Any]:
    cases: dict[str, Any] = json.loads((shared / "spec" / "check-values.json").read_text())["cases"]
    return cases["song-ddpmpp/EDMPrecond"]


def test_images_and_labels_are_the_published_ones(published: dict[str, Any]) -> None:
    x = inputs()["x"]
    images, labels = augment(x, 0.5, torch.Generator().manual_seed(0))
    expected = torch.tensor(published["AugmentPipe_p0.5_seed0_labels"])
    assert torch.allclose(labels, expected, atol=1e-6)
    assert_recorded(images, published["AugmentPipe_p0.5_seed0_images"])


def smooth(n: int = 2, size: int = 32) -> torch.Tensor:
    """Images whose content is far below the filter's edge and away from the border."""
    u = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(u, u, indexing="ij")
    bump = torch.exp(-20 * ((x - 0.2) ** 2 + 2 * (y + 0.1) ** 2))
    return torch.stack([bump, bump.flip(0)])[:n, None]


def test_the_filter_keeps_the_mean() -> None:
    assert sum(SYM6) == pytest.approx(math.sqrt(2), rel=1e-12)


def test_no_transform_is_no_change() -> None:
    x = smooth()
    still = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    assert torch.allclose(warp(x, still), x, atol=1e-12)


def test_shifts_quarter_turns_and_their_order() -> None:
    x = smooth()
    three = torch.full((2,), 3.0, dtype=torch.float64)
    moved = warp(x, translation(-three, 0 * three))
    assert torch.allclose(moved[..., 8:-8], x.roll(3, dims=3)[..., 8:-8], atol=5e-3)
    turned = warp(x, rotation(torch.full((2,), math.pi / 2, dtype=torch.float64)))
    assert torch.allclose(turned, x.rot90(1, dims=(2, 3)), atol=0.03)


def test_scaling_changes_the_mass_by_its_square() -> None:
    x = smooth()
    half = torch.full((2,), 1 / 1.3, dtype=torch.float64)
    grown = warp(x, scaling(half, half))
    assert torch.allclose(grown.sum(), x.sum() * 1.3**2, rtol=1e-2)


def test_probability_zero_only_flips_in_x() -> None:
    x = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(2)).cumsum(2).cumsum(3) / 8
    images, labels = augment(x, 0.0, torch.Generator().manual_seed(1))
    assert 0.4 < labels[:, 0].mean() < 0.6
    assert not labels[:, 1:].any()
    flipped = labels[:, 0] == 1
    mirrored = warp(x.flip(3), torch.eye(3).expand(256, 3, 3))
    assert torch.allclose(images[flipped], mirrored[flipped], atol=1e-5)
    still = warp(x, torch.eye(3).expand(256, 3, 3))
    assert torch.allclose(images[~flipped], still[~flipped], atol=1e-5)


def test_each_transform_comes_as_often_as_said() -> None:
    _, labels = augment(torch.zeros(4000, 1, 8, 8), 0.12, torch.Generator().manual_seed(5))
    done = (labels != 0).double().mean(0)
    assert float(done[0]) == pytest.approx(0.5, abs=0.03)
    assert float(done[1]) == pytest.approx(0.06, abs=0.015)  # a coin, with probability 0.12
    for entry in (2, 4, 7, 8):
        assert float(done[entry]) == pytest.approx(0.12, abs=0.02)


def test_training_shows_augmented_images_and_tells_the_network() -> None:
    network = "network={kind: song, model_channels: 8, channel_mult: [1], num_blocks: 1, augment_dim: 9}"
    keys = ["conditional=false", network, "augment=0.5", "train.batch=16", "train.images=64"]
    run = make_plan(read_recipe("digits-edm", keys)).trainer()
    told: list[torch.Tensor] = []
    network_pass = run.model.network.forward

    def forward(*arguments: torch.Tensor) -> torch.Tensor:
        told.append(arguments[3])
        return network_pass(*arguments)

    run.model.network.forward = forward
    report = next(run.steps())
    assert report.finite
    draws = run._draw()
    assert draws.batch.augment is not None
    assert told[0].shape == draws.batch.augment.shape == (16, LABELS)
    assert told[0].any()
    plain = digits().train.batch(run.order.rows(run.images, 16), False).x_0
    assert not torch.allclose(plain, draws.batch.x_0, atol=0.1)
    half = draws.rows(slice(8, 16)).batch.augment
    assert half is not None
    assert torch.equal(half, draws.batch.augment[8:])


def test_a_network_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(UserError, match="augment_dim: 9"):
        make_plan(read_recipe("digits-edm", ["augment=0.1"]))
