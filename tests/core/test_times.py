"""When: laws of t, maps t → r against the parity fixtures, grids against their papers, phases."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consistune.core.laws import LogNormal, LogStudent
from consistune.core.times import (
    ConstGap,
    DoublingGrid,
    FixedGrid,
    GridPairs,
    GrowingGrid,
    LogNormalPairs,
    Phased,
    SigmoidGap,
    karras_edges,
    karras_grid,
    ordered,
)
from tests.support.gaussian import SCHEDULES
from tests.support.toy import fixtures, named

STAGE = 3_200_000
shrink_rates = st.sampled_from([1.0, 2.0, 3.0, 8.0, math.inf])
progresses = st.integers(0, 10 * STAGE)


GAPS = {"sigmoid": SigmoidGap, "const": ConstGap}


@pytest.mark.parametrize("path", [*fixtures("ect/ect_cifar_loss_*"), *fixtures("ect/ect_*_maps")])
def test_one_stage_a_division_by_q_is_ects_map(parity, path) -> None:
    fixture = parity(path)
    for match in named(fixture, r"r_q([\d.]+)_(sigmoid|const)"):
        gap = GAPS[match[2]](q=float(match[1]))
        for stage, expected in enumerate(fixture[match[0]]):
            for progress in (stage * STAGE, (stage + 1) * STAGE - 1):
                r = gap.lower(fixture["t"], progress)
                torch.testing.assert_close(r, expected, rtol=1e-6, atol=1e-12)


@given(st.integers(0, 12), shrink_rates, st.sampled_from([2.0, 4.0, 1.3]))
def test_all_maps_have_shrunk_alike_at_every_multiple_of_d(stage: int, m: float, q: float) -> None:
    gap = SigmoidGap(q=q, stages_per_halving=m)
    assert gap.shrinkage(stage * STAGE) == pytest.approx(q ** -(1 + stage), rel=1e-12)


@given(progresses)
def test_the_continuous_map_is_the_limit_of_many_stages(progress: int) -> None:
    continuous = SigmoidGap(stages_per_halving=math.inf).shrinkage(progress)
    assert SigmoidGap(stages_per_halving=1e6).shrinkage(progress) == pytest.approx(continuous, rel=1e-5)
    assert continuous == pytest.approx(2 ** -(1 + progress / STAGE), rel=1e-12)


@given(progresses, progresses, shrink_rates)
def test_r_is_below_t_rises_with_t_and_with_progress(a: int, b: int, m: float) -> None:
    gap = SigmoidGap(stages_per_halving=m)
    t = torch.logspace(-3, 2, 400, dtype=torch.float64)
    early, late = gap.lower(t, min(a, b)), gap.lower(t, max(a, b))
    assert bool((early <= late).all())
    assert bool((late < t).all())
    assert bool((early >= 0).all())
    assert bool((late.diff() >= 0).all())


@given(progresses, st.floats(0.6, 0.9999))
def test_max_ratio_caps_the_map_and_changes_nothing_before(progress: int, cap: float) -> None:
    t = torch.logspace(-2, 2, 100, dtype=torch.float64)
    free, capped = SigmoidGap().lower(t, progress), SigmoidGap(max_ratio=cap).lower(t, progress)
    assert bool((capped <= cap * t * (1 + 1e-12)).all())
    if 2.0 ** -(1 + progress // STAGE) >= 1 - cap:
        assert torch.equal(free, capped)


@given(st.sampled_from(SCHEDULES), progresses, st.integers(0, 100))
def test_pairs_are_ordered_in_every_schedule_and_name_the_same_ratios(schedule, progress, seed) -> None:
    pairs = LogNormalPairs(SigmoidGap(stages_per_halving=8), low=0.002, high=80.0, schedule=schedule)
    times = pairs.sample(64, progress, torch.Generator().manual_seed(seed))
    assert bool((times.t > times.r).all())
    assert bool((times.r >= times.s).all())
    edm = LogNormalPairs(SigmoidGap(stages_per_halving=8), low=0.002, high=80.0)
    same = edm.sample(64, progress, torch.Generator().manual_seed(seed))
    torch.testing.assert_close(schedule.noise_to_signal(times.t.double()), same.t.double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_only_rounding_is_clipped(schedule) -> None:
    t = torch.tensor([0.01, 1.0, 50.0])
    rounded = ordered(schedule, t, t * (1 + 1e-6))
    assert bool((rounded.r < rounded.t).all())
    beyond = ordered(schedule, t, t * 1.5)
    assert bool((beyond.r > beyond.t).all())
    with pytest.raises(ValueError, match=r"r \[3, 1\], expected \[3\]"):
        ordered(schedule, t, t[:, None] / 2)


def test_lognormal_has_the_published_mean_and_deviation(generator) -> None:
    logs = LogNormal().sample(200_000, generator).double().log()
    assert float(logs.mean()) == pytest.approx(-1.1, abs=0.015)
    assert float(logs.std()) == pytest.approx(2.0, abs=0.01)


def test_truncation_is_the_conditional_law(generator) -> None:
    """Cut at [0.1, 1], the distribution function is that of the whole law, rescaled."""
    t = LogNormal(low=0.1, high=1.0).sample(100_000, generator)
    assert float(t.min()) >= 0.1
    assert float(t.max()) <= 1.0

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((math.log(x) + 1.1) / (2 * math.sqrt(2))))

    for x in (0.2, 0.4, 0.7):
        expected = (below(x) - below(0.1)) / (below(1.0) - below(0.1))
        assert float((t < x).double().mean()) == pytest.approx(expected, abs=0.006)


def test_karras_grids_are_cms(parity) -> None:
    fixture = parity("openai_cm/openai_cm")
    for match in named(fixture, r"karras_(\d+)"):
        expected = fixture[match[0]].double()
        grid = karras_grid(int(match[1])).flip(0)
        torch.testing.assert_close(torch.cat([grid, torch.zeros(1)]), expected, rtol=2e-5, atol=0)


def test_cms_growing_grid_and_target_decay() -> None:
    """The check values of the original code's schedule: k → N, μ."""
    size = GrowingGrid(total_images=800_000, s0=2, s1=200)
    for k, n, mu in [(0, 2, 0.9025), (1, 3, 0.95), (1000, 8, 0.98545), (100_000, 72, 0.998556),
                     (400_000, 143, 0.999278), (799_999, 201, 0.999487)]:  # fmt: skip
        assert size.points(k) == n
        assert size.target_decay(k, mu_0=0.95) == pytest.approx(mu, abs=3e-6)


def test_cms_growing_grid_keeps_its_last_size() -> None:
    assert GrowingGrid(1000).points(1000) == GrowingGrid(1000).points(5000) == 151


def test_icts_doubling_grid() -> None:
    size = DoublingGrid(total_images=400_000)
    assert [size.points(50_000 * i) for i in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert size.points(49_999) == 11
    assert size.points(10**9) == 1281
    # ⌊159/10⌋ = 15 is below 16: at 81 % there are ⌊0.81·(log₂15 + 1)⌋ = 3 doublings
    assert DoublingGrid(1000, s0=10, s1=159).points(810) == 81


def test_grid_pairs_are_neighbours_with_the_lognormal_mass(generator) -> None:
    pairs = GridPairs(FixedGrid(11), std=2.0)
    grid = karras_grid(11).float()
    times = pairs.sample(60_000, 0, generator)
    i = torch.searchsorted(grid, times.r)
    assert torch.equal(grid[i], times.r)
    assert torch.equal(grid[i + 1], times.t)
    cdf = [0.5 * (1 + math.erf((math.log(float(s)) + 1.1) / (2 * math.sqrt(2)))) for s in karras_grid(11)]
    mass = torch.tensor(cdf).diff() / (cdf[-1] - cdf[0])
    torch.testing.assert_close(torch.bincount(i, minlength=10) / 60_000, mass, rtol=0, atol=0.008)


def test_cms_grid_is_uniform(generator) -> None:
    times = GridPairs(FixedGrid(5)).sample(40_000, 0, generator)
    counts = torch.unique(times.t, return_counts=True)[1]
    assert len(counts) == 4
    torch.testing.assert_close(counts / 40_000, torch.full((4,), 0.25), rtol=0, atol=0.01)


@given(st.lists(st.floats(0.01, 70), min_size=0, max_size=4, unique=True), st.integers(0, 50))
def test_phases_clip_r_at_the_edge_below_t(edges: list[float], seed: int) -> None:
    edges = sorted(edges)
    plain = LogNormalPairs(SigmoidGap())
    a = plain.sample(200, 0, torch.Generator().manual_seed(seed))
    b = Phased(plain, tuple(edges)).sample(200, 0, torch.Generator().manual_seed(seed))
    assert torch.equal(a.t, b.t)
    for t, r, r_plain, s in zip(b.t.tolist(), b.r.tolist(), a.r.tolist(), b.s.tolist(), strict=True):
        bounds = [0.0, *torch.tensor(edges, dtype=torch.float32).tolist()]
        assert s == max(edge for edge in bounds if edge < t)
        assert r == max(r_plain, s)


def test_a_time_at_an_edge_is_in_the_phase_below_it() -> None:
    at_edge = GridPairs(FixedGrid(2), low=0.5, high=1.0)  # t = 1, r = 0.5
    times = Phased(at_edge, (1.0,)).sample(3, 0, torch.Generator().manual_seed(0))
    assert times.s.tolist() == [0.0] * 3
    assert times.r.tolist() == [0.5] * 3


@pytest.mark.parametrize(
    "build",
    [
        lambda: SigmoidGap(q=1.0),
        lambda: SigmoidGap(every_images=0),
        lambda: SigmoidGap(stages_per_halving=0),
        lambda: SigmoidGap(max_ratio=1.5),
        lambda: LogNormal(std=0.0),
        lambda: LogNormal(low=2.0, high=1.0),
        lambda: LogNormal(mean=math.nan),
        lambda: LogStudent(df=1e16),
        lambda: LogNormal(low=0.0),
        lambda: LogNormalPairs(SigmoidGap(), low=0.0),
        lambda: LogNormalPairs(SigmoidGap(), low=5.0, high=1.0),
        lambda: GridPairs(FixedGrid(), low=5.0, high=1.0),
        lambda: GridPairs(FixedGrid(), std=0.0),
        lambda: FixedGrid(1),
        lambda: GrowingGrid(100, s0=5, s1=2),
        lambda: DoublingGrid(100, s0=5, s1=2),
        lambda: DoublingGrid(0),
        lambda: Phased(LogNormalPairs(SigmoidGap()), (1.0, 0.5)),
        lambda: Phased(LogNormalPairs(SigmoidGap()), (0.0, 0.5)),
    ],
)
def test_impossible_settings_are_refused(build) -> None:
    with pytest.raises(ValueError, match=r"must|need"):
        build()


@pytest.mark.parametrize(
    ("mean", "std", "low", "high"),
    [(-1.1, 0.2, 2.0, 80.0), (6.0, 0.1, 0.002, 80.0), (-1.1, 0.05, 2.0, None), (3.0, 0.1, None, 2.0)],
)
def test_a_cut_far_out_keeps_the_shape_of_the_tail(mean, std, low, high) -> None:
    """Mills' ratio: beyond z the excess of ln σ/α over the bound is exponential with mean about std/|z|."""
    law = LogNormal(mean, std, low, high)
    above = low is not None and math.log(low) > mean
    bound = low if above else high
    z = abs(math.log(bound) - mean) / std
    share = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    tail = share if above else 1 - share
    excess = (law.quantile(share).log() - math.log(bound)).abs()
    torch.testing.assert_close(excess, -torch.log1p(-tail) * std / z, rtol=5 / z**2, atol=0)


@pytest.mark.parametrize(
    "build", [lambda: LogNormal(-1.1, 0.01, 2.0, 80.0), lambda: LogStudent(10.0, 1e-6, df=1000.0)]
)
def test_a_law_without_mass_in_its_range_is_refused(build) -> None:
    with pytest.raises(ValueError, match="no mass from low to high"):
        build()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_karras_edges_are_evenly_spaced_in_the_seventh_root(schedule) -> None:
    edges = torch.tensor(karras_edges(4, schedule), dtype=torch.float64)
    roots = schedule.noise_to_signal(edges) ** (1 / 7)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = low + (high - low) * torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    torch.testing.assert_close(roots, expected, rtol=1e-7, atol=0)
    assert karras_edges(1, schedule) == ()
    with pytest.raises(ValueError, match="phases"):
        karras_edges(0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ConstGap(b=3.0), "neither k nor b"),
        (lambda: ConstGap(k=8.0), "neither k nor b"),
        (lambda: GridPairs(FixedGrid(10), mean=-3.0), "mean has no effect without std"),
    ],
)
def test_numbers_without_effect_are_refused(make, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
