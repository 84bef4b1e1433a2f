"""The posterior mean: the streaming form against the formula written out in float64."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from consistune.core.noise import EDM
from consistune.core.posterior import integers as whole_numbers
from consistune.core.posterior import streaming
from consistune.core.posterior.mean import Reference, dequantise, posterior, quantise
from tests.support.exact import posterior_exact
from tests.support.gaussian import SCHEDULES

SHAPE = (3, 8, 8)


def pixels(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Random pictures with white and black areas, as drawings have, every fourth a near-duplicate."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(-120, 380, (n, *shape), generator=g).clamp(0, 255)
    nudge = torch.randint(-1, 2, images.shape, generator=g) * (torch.rand(images.shape, generator=g) < 0.02)
    near = (images + nudge).clamp(0, 255)
    images[3::4] = near[2::4][: len(images[3::4])]
    return images.to(torch.uint8)


def noisy(images: Tensor, ratio: float, schedule=EDM(), n: int = 6, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(images), (n,), generator=g)
    x_0 = dequantise(images[rows]) if images.dtype == torch.uint8 else images[rows]
    t = schedule.time_at(torch.full((n,), ratio, dtype=torch.float64)).float()
    noise = torch.randn(x_0.shape, generator=g, dtype=x_0.dtype)
    return schedule.diffuse(x_0, noise, t.to(x_0.dtype)), t


def relative(found: Tensor, exact: Tensor) -> float:
    error = (found.double() - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    return float(error.max())


LEVELS_OF_NOISE = [0.002, 0.005, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 80.0]


@pytest.mark.parametrize("ratio", LEVELS_OF_NOISE)
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_streaming_is_exact(kind: str, ratio: float, schedule) -> None:
    images = pixels(64)
    if kind != "uint8":
        images = dequantise(images).to(getattr(torch, kind))
    x_t, t = noisy(images, ratio, schedule)
    exact = posterior_exact(x_t, t, schedule, images)
    for block in (1, 7, 64, 1000):
        found = posterior(x_t, t, schedule, Reference.ungrouped(images), block=block).mean
        assert relative(found, exact) < 1e-5


@given(st.floats(math.log(0.002), math.log(80)).map(math.exp), st.integers(1, 50), st.integers(1, 60),
       st.sampled_from([(1, 1, 1), (1, 8, 8), (3, 20, 20)]))  # fmt: skip
def test_streaming_is_exact_for_any_size_block_and_time(ratio: float, n: int, block: int, shape) -> None:
    images = pixels(n, seed=n, shape=shape)
    x_t, t = noisy(images, ratio)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images), block=block).mean
    assert (found - posterior_exact(x_t, t, EDM(), images)).abs().max() < 1e-5


@pytest.mark.parametrize("ratio", [0.002, 0.01, 0.05])
def test_large_images_with_near_duplicates_are_told_apart(ratio: float) -> None:
    """d = 3072 and copies one level apart in a few pixels: 10⁻⁷ in a dot product would show."""
    base = pixels(1, shape=(3, 32, 32))
    images = base.repeat(24, 1, 1, 1)
    for i in range(24):
        images[i].view(-1)[i * 7 : i * 7 + i // 3] ^= 1
    x_t, t = noisy(images, ratio)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images))
    exact = posterior_exact(x_t, t, EDM(), images)
    assert (found.mean - exact).abs().max() < 1e-5


@pytest.mark.parametrize("ratio", [0.002, 0.3, 3.0, 80.0])
def test_mirrored_references_count_as_twice_as_many(ratio: float) -> None:
    images = pixels(20)
    both = torch.cat([images, images.flip(-1)])
    x_t, t = noisy(both, ratio)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images), mirrored=True, block=7)
    twice = posterior(x_t, t, EDM(), Reference.ungrouped(both))
    assert relative(found.mean, posterior_exact(x_t, t, EDM(), both)) < 1e-5
    torch.testing.assert_close(found.effective_size, twice.effective_size, rtol=1e-4, atol=0)


@pytest.mark.parametrize("ratio", [0.01, 1.0, 20.0])
def test_groups_are_answered_as_if_alone(ratio: float) -> None:
    images = pixels(60)
    labels = torch.randint(5, (60,), generator=torch.Generator().manual_seed(2))
    reference = Reference.grouped(images, labels)
    x_t, t = noisy(images, ratio, n=12)
    group = torch.randint(5, (12,), generator=torch.Generator().manual_seed(3))
    found = posterior(x_t, t, EDM(), reference, group).mean
    for c in range(5):
        mine = group == c
        if bool(mine.any()):
            alone = posterior_exact(x_t[mine], t[mine], EDM(), images[labels == c])
            assert relative(found[mine], alone) < 1e-5


def test_as_noise_vanishes_the_weights_are_one_hot() -> None:
    images = pixels(40, seed=3)[::4]  # no near-duplicates among these
    x_t, t = noisy(images, 0.002)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images))
    own = dequantise(images)[torch.cdist(x_t.flatten(1), dequantise(images).flatten(1)).argmin(1)]
    torch.testing.assert_close(found.mean, own, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.effective_size, torch.ones(6))


def test_as_noise_grows_the_weights_are_uniform() -> None:
    images = pixels(40)
    x_t = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * 1e6
    found = posterior(x_t, torch.full((3,), 1e6), EDM(), Reference.ungrouped(images))
    mean = dequantise(images).mean(0).expand(3, *SHAPE)
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.effective_size, torch.full((3,), 40.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_it_is_the_score_of_the_empirical_distribution(schedule) -> None:
    """(α·x̂_0 − x_t)/σ² is the gradient of log Σ_i N(x_t; α x⁽ⁱ⁾, σ²), by automatic differentiation."""
    images = dequantise(pixels(16)).double()
    x_t, t = noisy(images, 1.3, schedule)
    x_t = x_t.double().requires_grad_()
    alpha, sigma = schedule.alpha(t.double()), schedule.sigma(t.double())
    centres = alpha[:, None, None] * images.flatten(1)
    squares = (x_t.flatten(1)[:, None] - centres).square().sum(2)
    density = torch.logsumexp(-squares / (2 * sigma.square())[:, None], dim=1)
    (score,) = torch.autograd.grad(density.sum(), x_t)
    mean = posterior(x_t.detach(), t, schedule, Reference.ungrouped(images)).mean
    found = (alpha[:, None] * mean.flatten(1) - x_t.detach().flatten(1)) / sigma.square()[:, None]
    torch.testing.assert_close(found, score.flatten(1), rtol=1e-9, atol=1e-9)


def test_stable_targets_are_stfs(parity) -> None:
    fixture = parity("stf/stf_targets")
    sigma, x_t = fixture["sigma"], fixture["perturbed"]
    mean = posterior(x_t, sigma, EDM(), Reference.ungrouped(fixture["reference"])).mean
    torch.testing.assert_close(mean.double(), fixture["target_float64"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        mean.float(), fixture["target_float32"], rtol=1e-5, atol=1e-4
    )  # STF's own error


def test_effective_size_is_the_inverse_sum_of_squares() -> None:
    images = pixels(30)
    x_t, t = noisy(images, 2.0)
    x = dequantise(images).double()
    logits = -(x_t.double()[:, None] - x).square().flatten(2).sum(2) / (2 * t.double() ** 2)[:, None]
    weights = torch.softmax(logits, 1)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images), block=4).effective_size
    torch.testing.assert_close(found.double(), 1 / weights.square().sum(1), rtol=1e-4, atol=0)


def test_no_gradient_flows_and_half_precision_queries_are_answered_in_fp32() -> None:
    images = pixels(10)
    x_t, t = noisy(images, 1.0)
    assert not posterior(x_t.requires_grad_(), t, EDM(), Reference.ungrouped(images)).mean.requires_grad
    half = x_t.detach().half()
    found = posterior(half, t.half(), EDM(), Reference.ungrouped(images)).mean
    assert found.dtype == torch.float32
    assert relative(found, posterior_exact(half, t.half(), EDM(), images)) < 1e-5


def test_quantising_undoes_dequantising() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(quantise(dequantise(every)), every)


def whole() -> Reference:
    return Reference.ungrouped(pixels(8))


def ask(x_t: Tensor | None = None, t: float = 1.0, reference: Reference | None = None, group=None) -> object:
    x_t = torch.zeros(2, *SHAPE) if x_t is None else x_t
    return posterior(x_t, torch.full((len(x_t),), t), EDM(), reference or whole(), group)


labelled = Reference.grouped(pixels(8), torch.tensor([0, 0, 0, 0, 2, 2, 2, 3]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ask(t=0.0), "sigma"),
        (lambda: ask(x_t=torch.zeros(2, 3, 4, 4)), "queries are"),
        (lambda: ask(x_t=torch.full((2, *SHAPE), torch.nan)), "NaN"),
        (lambda: ask(t=math.nan), "sigma"),
        (lambda: ask(reference=labelled), "needs its group"),
        (lambda: ask(reference=labelled, group=torch.tensor([0, 1])), "no reference images"),
        (lambda: ask(reference=labelled, group=torch.tensor([0, 4])), "not in the reference"),
        (lambda: ask(reference=labelled, group=torch.tensor([0, -1])), "not in the reference"),
        (lambda: ask(reference=labelled, group=torch.tensor([0])), "integers"),
        (lambda: ask(reference=labelled, group=torch.tensor([0.0, 1.0])), "integers"),
        (lambda: Reference.ungrouped(torch.zeros(0, *SHAPE)), "at least one"),
        (lambda: Reference.ungrouped(torch.full((2, *SHAPE), torch.nan)), "NaN"),
        (lambda: Reference.ungrouped(torch.zeros(2, *SHAPE, dtype=torch.int32)), "uint8"),
        (lambda: Reference.grouped(pixels(4), torch.tensor([0, 1, 2])), "labels"),
        (lambda: Reference.grouped(pixels(3), torch.tensor([0, -1, 2])), "labels"),
        (lambda: Reference.grouped(pixels(3), torch.tensor([0.0, 1.0, 2.0])), "labels"),
        (lambda: Reference.grouped(pixels(3), torch.tensor([0, 1, 5]), num_groups=3), "labels"),
    ],
)
def test_what_cannot_be_answered_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("level", [0, 127, 128, 255])
def test_equal_images_are_the_mean_however_small_t_is(level: int) -> None:
    same = torch.full((5, *SHAPE), level, dtype=torch.uint8)
    for t in (1e-30, 1e-16, 1e-3, 1e30):
        noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
        x_t = dequantise(same[:2]) + t * noise
        found = posterior(x_t, torch.full((2,), t), EDM(), Reference.ungrouped(same)).mean
        torch.testing.assert_close(found, dequantise(same[:2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", [1e-160, 1e-130, 1e120])
def test_ratios_whose_squares_float64_does_not_hold_are_refused(t: float) -> None:
    x_t = t * torch.ones(2, *SHAPE, dtype=torch.float64)
    for images in (pixels(8), dequantise(pixels(8))):
        with pytest.raises(ValueError, match="sigma/alpha"):
            posterior(x_t, torch.full((2,), t, dtype=torch.float64), EDM(), Reference.ungrouped(images))


def test_a_class_with_one_image_is_that_image() -> None:
    x_t = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 3
    group = torch.tensor([3, 3])
    found = posterior(x_t, torch.tensor([0.01, 50.0]), EDM(), labelled, group).mean
    torch.testing.assert_close(found, dequantise(pixels(8)[7:]).expand(2, *SHAPE), rtol=0, atol=1e-6)


# Bytes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_bytes(monkeypatch) -> None:
    """A machine on which bytes multiply no faster than floats."""
    for module in (streaming, whole_numbers):
        monkeypatch.setattr(module, "fast_bytes", lambda _: False)


@pytest.mark.usefixtures("slow_bytes")
@pytest.mark.parametrize("ratio", LEVELS_OF_NOISE)
def test_floats_answer_where_bytes_are_slow(ratio: float) -> None:
    images = pixels(64, shape=(3, 32, 32))
    for i in range(1, 24):  # near-duplicates, one level apart in a few pixels
        images[i] = images[0]
        images[i].view(-1)[i * 7 : i * 7 + i // 3] ^= 1
    x_t, t = noisy(images, ratio)
    exact = posterior_exact(x_t, t, EDM(), images)
    for block in (7, 64):
        found = posterior(x_t, t, EDM(), Reference.ungrouped(images), block=block).mean
        assert relative(found, exact) < 1e-5


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0, 4.0, 8.0, 20.0])
def test_many_small_weights_are_not_lost(ratio: float) -> None:
    """Smooth images at noise where the weights spread over all orders of magnitude."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.randn(1500, 3, 4, 4, generator=g)
    images = quantise((0.5 * torch.nn.functional.interpolate(coarse, size=16, mode="bilinear")).clamp(-1, 1))
    x_t, t = noisy(images, ratio)
    found = posterior(x_t, t, EDM(), Reference.ungrouped(images))
    assert relative(found.mean, posterior_exact(x_t, t, EDM(), images)) < 2e-6


@pytest.mark.parametrize("bytes_are_slow", [False, True])
def test_many_equal_images_far_away_count_together(bytes_are_slow: bool, request) -> None:
    """20,000 of them, each with e⁻¹⁴ of the nearest image's weight."""
    if bytes_are_slow:
        request.getfixturevalue("slow_bytes")
    near = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    far = near.clone()
    far[..., :4, :] = 140
    x, z = dequantise(near).double(), dequantise(far).double()
    t = ((x - z).square().sum() / 28).sqrt().view(1)
    weight = 20_000 * math.exp(-14) / (1 + 20_000 * math.exp(-14))
    reference = Reference.ungrouped(torch.cat([near, far.expand(20_000, -1, -1, -1)]))
    found = posterior(x, t, EDM(), reference).mean
    torch.testing.assert_close(found.double(), x + weight * (z - x), rtol=0, atol=3e-6)


@pytest.mark.skipif(not whole_numbers.fast_bytes(torch.device("cpu")), reason="bytes multiply slowly here")
@pytest.mark.parametrize("ratio", [0.02, 0.5, 1.0, 3.0, 10.0, 80.0])
def test_an_answer_does_not_depend_on_the_other_questions(ratio: float) -> None:
    images = pixels(301, shape=(3, 9, 11))
    x_t, t = noisy(images, ratio, n=9)
    t = t * torch.logspace(-0.5, 0.5, 9)
    together = posterior(x_t, t, EDM(), Reference.ungrouped(images)).mean
    for rows in (slice(0, 1), slice(2, 7), slice(8, 9)):
        assert torch.equal(
            posterior(x_t[rows], t[rows], EDM(), Reference.ungrouped(images)).mean, together[rows]
        )


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 40), st.integers(0, 99))
def test_products_of_bytes_are_whole_numbers(b: int, k: int, m: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q, x = (torch.randint(-128, 128, size, generator=g).to(torch.int8) for size in ((b, k), (m, k)))
    assert torch.equal(whole_numbers.exact_products(q, x.T).long(), q.long() @ x.T.long())


def test_products_of_bytes_are_exact_where_onednn_may_not_use_vnni() -> None:
    program = (
        "import torch; from consistune.core.posterior.integers import exact_products;"
        "q, x = torch.full((2, 64), 127).to(torch.int8), torch.full((64, 3), -128).to(torch.int8);"
        "print(exact_products(q, x).long().unique().tolist())"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert said.stdout.decode().strip() == f"[{-127 * 128 * 64}]"


@pytest.mark.parametrize("k", [2**17, 2**17 + 1])
def test_the_largest_products_do_not_overflow(k: int) -> None:
    q, x = torch.full((1, k), 127, dtype=torch.int8), torch.full((k, 1), -128, dtype=torch.int8)
    assert int(whole_numbers.exact_products(q, x)) == -127 * 128 * k


@given(st.lists(st.floats(-127, 127), min_size=1, max_size=9), st.integers(1, 5))
def test_digits_come_within_half_of_the_last(values: list[float], count: int) -> None:
    value = torch.tensor(values, dtype=torch.float64)
    digits = whole_numbers.signed_digits(value.clone(), count).double()
    scale = whole_numbers.BASE ** -torch.arange(float(count), dtype=torch.float64)
    assert ((scale[:, None] * digits).sum(0) - value).abs().max() <= 0.5 * scale[-1] * (1 + 1e-6)
