"""Averages follow their formulas; what is put together afterwards is what training would have kept."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from consistune.errors import UserError
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.training import posthoc
from consistune.training.ema import EMA, GrowingAverage, HalfLife, PerStep, PowerFunction, exponent_of, std_of
from consistune.training.posthoc import Profile, coefficients, overlaps
from consistune.training.run import RunFolder

Parity = Callable[[str], dict[str, torch.Tensor]]


def test_a_constant_decay_follows_its_recursion() -> None:
    model = nn.Linear(3, 2)
    average = EMA(model, 0.9)
    expected = model.weight.detach().double().clone()
    for step in range(20):
        with torch.no_grad():
            model.weight.add_(torch.full_like(model.weight, 0.1 * step))
        average.step(model, 64 * step, 64)
        expected = 0.9 * expected + 0.1 * model.weight.detach().double()
    assert torch.allclose(average.model.weight.double(), expected, rtol=1e-5)


def test_buffers_are_copied_whatever_the_decay() -> None:
    model = nn.BatchNorm1d(2)
    average = EMA(model, 0.9)
    model.running_mean = torch.tensor([3.0, 4.0])
    average.step(model, 0, 64)
    assert average.model.running_mean.tolist() == [3.0, 4.0]


def test_several_averages_run_side_by_side() -> None:
    words = "train.ema=[0.5, 0.9, {kind: half-life, images: 500, ramp_up: 0.05}, {kind: power, std: 0.1}]"
    keys = ["network={kind: mlp, width: 8, blocks: 1}", "train.images=640", "train.batch=64", words]
    run = make_plan(read_recipe("digits-edm", keys)).trainer()
    weights = [p.detach().double().clone() for p in run.model.parameters()]
    rules = [PerStep(0.5), PerStep(0.9), HalfLife(500, 0.05), PowerFunction(0.1)]
    expected = [[w.clone() for w in weights] for _ in rules]
    for report in run.steps():
        for rule, kept in zip(rules, expected, strict=True):
            beta = rule.decay(report.images - 64, 64)
            for w, p in zip(kept, run.model.parameters(), strict=True):
                w.copy_(beta * w + (1 - beta) * p.detach().double())
    for average, kept in zip(run.averages, expected, strict=True):
        for p, w in zip(average.model.parameters(), kept, strict=True):
            assert torch.allclose(p.double(), w, atol=1e-6)


def test_a_half_life_is_counted_in_images_whatever_the_batch() -> None:
    for batch in (1, 16, 128):
        kept = math.prod(HalfLife(4_096).decay(n, batch) for n in range(0, 4_096, batch))
        assert kept == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(("beta", "batch", "images"), [(0.5, 64, 64), (0.25, 64, 32), (0.5**0.125, 10, 80)])
def test_the_half_life_of_a_constant_decay_is_where_half_is_left(
    beta: float, batch: int, images: int
) -> None:
    assert HalfLife.of_decay(beta, batch) == pytest.approx(images, rel=1e-12)
    assert HalfLife(images).decay(0, batch) == pytest.approx(beta, rel=1e-12)


def test_edms_ramp_up() -> None:
    """half = min(half, 0.05·images before the step); β = 0.5^(batch/half), and 0 at the very first step."""
    rule = HalfLife(500_000, ramp_up=0.05)
    assert rule.decay(0, 512) == 0
    assert rule.decay(1_000_000, 512) == pytest.approx(0.5 ** (512 / 50_000))
    assert rule.decay(10_000_000, 512) == rule.decay(10**9, 512) == pytest.approx(0.5 ** (512 / 500_000))


def test_lengths_and_exponents_are_the_published_ones(parity: Parity) -> None:
    found = parity("ema/phema")
    for std, exponent in zip(found["std"].tolist(), found["exp"].tolist(), strict=True):
        assert exponent_of(std) == pytest.approx(exponent, rel=1e-12)
    assert exponent_of(0.010) == pytest.approx(96.99489782370986, rel=1e-12)
    for std in (1e-4, 0.01, 0.2, 0.2886):
        assert std_of(exponent_of(std)) == pytest.approx(std, rel=1e-12)
    for std in (0.0, -0.1, 0.289, math.nan):
        with pytest.raises(ValueError, match="std"):
            exponent_of(std)


def test_power_decays_are_the_published_ones(parity: Parity) -> None:
    found = parity("ema/phema")
    steps = list(zip(found["beta_t_next"].tolist(), found["beta_t_delta"].tolist(), strict=True))
    for std, betas in zip(found["std"].tolist(), found["beta_std"].tolist(), strict=True):
        given = [PowerFunction(std).decay(int(after - batch), int(batch)) for after, batch in steps]
        assert given == pytest.approx(betas, rel=1e-12)


def test_coefficients_are_the_published_ones(parity: Parity) -> None:
    found = {name: value.numpy() for name, value in parity("ema/phema").items()}
    snapshots = [Profile(t, s) for t, s in zip(found["in_ofs"], found["in_std"], strict=True)]
    for column, wanted in enumerate(zip(found["out_ofs"], found["out_std"], strict=True)):
        given = coefficients(snapshots, Profile(*wanted))
        np.testing.assert_allclose(given, found["coefficients"][:, column], rtol=1e-9, atol=1e-12)


def test_overlaps_are_the_integrals() -> None:
    """∫ p_a p_b over the shorter training, by the midpoint rule in float64."""
    profiles = [Profile(3.0, 0.05), Profile(3.0, 0.2), Profile(7.0, 0.1), Profile(8.0, 0.28)]
    tau = (np.arange(200_000) + 0.5) * 8.0 / 200_000

    def density(profile: Profile) -> np.ndarray:
        g, t = exponent_of(profile.std), profile.images
        return np.where(tau < t, (g + 1) * (tau / t) ** g / t, 0.0)

    found = overlaps(profiles, profiles)
    for i, a in enumerate(profiles):
        for j, b in enumerate(profiles):
            integral = float((density(a) * density(b)).sum() * 8.0 / 200_000)
            assert found[i, j] == pytest.approx(integral, rel=1e-3)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EMA, list[EMA]]:
    """A walk of weights with drift and noise, averaged as EDM2 does, and one length that it does not keep."""
    torch.manual_seed(4)
    path, batch, images = tmp_path_factory.mktemp("run"), 10, 0
    model = EDMPrecond(ResidualMLP((1, 4, 4), width=8, blocks=1, embedding=8)).double()
    kept, wanted = [EMA(model, PowerFunction(std)) for std in (0.05, 0.1)], EMA(model, PowerFunction(0.07))
    for step in range(1, 801):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 / math.sqrt(step) + 0.05 * torch.randn_like(parameter))
        for average in (*kept, wanted):
            average.step(model, images, batch)
        images += batch
        if images % 500 == 0:
            for average, std in zip(kept, (0.05, 0.1), strict=True):
                posthoc.save_snapshot(path, PowerFunction(std), average.model, images, "fp32")
    return path, wanted, kept


def vector(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def test_a_length_that_was_kept_comes_back(tracked: tuple[Path, EMA, list[EMA]]) -> None:
    path, _, kept = tracked
    for average, std in zip(kept, (0.05, 0.1), strict=True):
        back = vector(posthoc.reconstruct(path, std))
        assert torch.allclose(back, vector(average.model), atol=2e-6)


def test_another_length_is_nearly_the_average_that_was_not_kept(tracked: tuple[Path, EMA, list[EMA]]) -> None:
    """Sixteen snapshots of two lengths leave 2 % of what tells the wanted average from its neighbour."""
    path, wanted, kept = tracked
    error = (vector(posthoc.reconstruct(path, 0.07)) - vector(wanted.model)).norm()
    apart = (vector(kept[0].model) - vector(wanted.model)).norm()
    assert error < 0.02 * apart


def test_an_earlier_point_uses_nothing_later(tracked: tuple[Path, EMA, list[EMA]], tmp_path: Path) -> None:
    path, _, _ = tracked
    (tmp_path / "ema").mkdir()
    for file in (path / "ema").iterdir():
        if file.name == "config.json" or int(file.name.split("-")[0]) <= 4_000:
            (tmp_path / "ema" / file.name).write_bytes(file.read_bytes())
    there = vector(posthoc.reconstruct(path, 0.08, at=4_000))
    assert torch.equal(there, vector(posthoc.reconstruct(tmp_path, 0.08)))
    assert not torch.equal(there, vector(posthoc.reconstruct(path, 0.08)))


def test_snapshots_of_before_there_were_checksums_are_read_and_replaced(
    tracked: tuple[Path, EMA, list[EMA]], tmp_path: Path
) -> None:
    _, _, kept = tracked
    posthoc.save_snapshot(tmp_path, PowerFunction(0.05), kept[0].model, 8_000, "fp32")
    (path,) = (tmp_path / "ema").glob("*.safetensors")
    path.rename(path.with_name("000000008000-0.05.safetensors"))
    expected = vector(posthoc.reconstruct(tmp_path, 0.05))
    posthoc.save_snapshot(tmp_path, PowerFunction(0.05), kept[0].model, 8_000, "fp32")
    assert list((tmp_path / "ema").glob("*.safetensors")) == [path]
    assert torch.equal(vector(posthoc.reconstruct(tmp_path, 0.05)), expected)


def test_a_short_average_keeps_its_snapshots_and_files_of_other_names_stay(
    tracked: tuple[Path, EMA, list[EMA]], tmp_path: Path
) -> None:
    _, _, kept = tracked
    (tmp_path / "ema").mkdir()
    mine = tmp_path / "ema" / "mine.safetensors"
    mine.write_bytes(b"mine")
    for images in (8_000, 16_000):
        posthoc.save_snapshot(tmp_path, PowerFunction(5e-5), kept[0].model, images, "fp32")
    assert mine.read_bytes() == b"mine"
    assert [(known.images, known.std) for known in posthoc.snapshots(tmp_path)] == [
        (8_000, 5e-5),
        (16_000, 5e-5),
    ]


def test_half_precision_snapshots_are_near(tracked: tuple[Path, EMA, list[EMA]], tmp_path: Path) -> None:
    _, _, kept = tracked
    with torch.no_grad():
        next(kept[0].model.parameters()).view(-1)[0] = 1e6  # beyond fp16: that tensor stays whole
    posthoc.save_snapshot(tmp_path, PowerFunction(0.05), kept[0].model, 8_000, "fp16")
    back, expected = vector(posthoc.reconstruct(tmp_path, 0.05)), vector(kept[0].model)
    assert bool(back.isfinite().all())
    assert 0 < float((back - expected).norm() / expected.norm()) < 2**-11


def test_a_run_keeps_what_it_was_asked_to(tmp_path: Path) -> None:
    recipe = read_recipe(
        "digits-edm",
        [
            "network={kind: mlp, width: 8, blocks: 1}",
            "train={images: 640, batch: 64, ema_snapshot_images: 250}",
            "train.ema=[{kind: power, std: 0.1}, 0.9, {kind: power, std: 0.05}]",
        ],
    )
    run = RunFolder(tmp_path / "run", to_yaml(recipe), resume=False)
    trainer = make_plan(recipe).trainer()
    list(run.steps(trainer))
    found = posthoc.snapshots(tmp_path / "run")
    assert list(found) == [Profile(n, s) for n in (256, 512, 640) for s in (0.05, 0.1)]
    back = posthoc.reconstruct(tmp_path / "run", 0.1)
    for a, b in zip(back.parameters(), trainer.averaged.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert back.card.ema == {"std": 0.1, "images": 640}


def test_what_cannot_be_put_together_is_said(tracked: tuple[Path, EMA, list[EMA]], tmp_path: Path) -> None:
    path, _, _ = tracked
    with pytest.raises(UserError, match="kept no snapshots"):
        posthoc.reconstruct(tmp_path, 0.1)
    with pytest.raises(UserError, match="there are: 500, 1000"):
        posthoc.reconstruct(path, 0.1, at=501)
    with pytest.raises(UserError, match="--std"):
        posthoc.reconstruct(path, 0.3)
    torn = tmp_path / "torn" / "ema"
    torn.mkdir(parents=True)
    for file in sorted((path / "ema").iterdir())[-3:]:
        (torn / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".json" else 100])
    with pytest.raises(UserError, match="is damaged"):
        posthoc.reconstruct(tmp_path / "torn", 0.1)
    for file in list(torn.glob("*.safetensors")):
        file.rename(file.with_name(file.name.rpartition("-")[0] + ".safetensors"))
    with pytest.raises(UserError, match="cannot be read"):
        posthoc.reconstruct(tmp_path / "torn", 0.1)


def test_snapshots_are_in_order_of_time(tracked: tuple[Path, EMA, list[EMA]]) -> None:
    found = list(posthoc.snapshots(tracked[0]))
    assert len(found) == 32
    assert all(a < b for a, b in pairwise(found))


@pytest.mark.parametrize("mu_0", [0.0, 1.0, -1.0])
def test_a_growing_average_needs_a_decay_between_0_and_1(mu_0: float) -> None:
    with pytest.raises(ValueError, match="mu_0 must lie in"):
        GrowingAverage(1000, mu_0=mu_0)
