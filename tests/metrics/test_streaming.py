"""Metrics fed in pieces equal independent computations on the whole, and react as theory says."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from torchmetrics.image.inception import InceptionScore as WholeInceptionScore

from consistune.metrics.feature_file import FeatureFile
from consistune.metrics.features import Extractor
from consistune.metrics.frechet import finite_sample_bias, frechet, limit
from consistune.metrics.inception_score import InceptionScore
from consistune.metrics.kernel import kernel_distance
from consistune.metrics.moments import Moments, moments
from consistune.metrics.neighbours import neighbourhoods, radii
from consistune.metrics.sheet import Protocol
from tests.support.metrics import reference_of, setup_of, squared_mmd, values_of


def features(n: int, d: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.2, 2, d) + shift


def streamed(x: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    metric = Moments(x.shape[1])
    for part in torch.split(x, list(sizes)):
        metric.update(part)
    return metric.compute()


def test_streamed_moments_equal_numpys_and_keep_their_digits_far_from_zero() -> None:
    x = features(500, 7).double() + 1e7
    mean, covariance = streamed(x, 1, 200, 0, 299)
    assert np.allclose(mean, x.numpy().mean(0), rtol=1e-15)
    assert np.allclose(covariance, np.cov(x.numpy().T), rtol=1e-9)


def test_the_distance_of_streamed_features_equals_scipys() -> None:
    a, b = features(600, 24), features(500, 24, seed=1, shift=0.3)
    found = frechet(*streamed(a, 250, 350), *streamed(b, 500))
    (m1, s1), (m2, s2) = ((x.numpy().mean(0), np.cov(x.numpy().T)) for x in (a.double(), b.double()))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_biased_convention_divides_by_n() -> None:
    x = features(50, 5)
    metric = Moments(5, "biased")
    metric.update(x[:20])
    metric.update(x[20:])
    assert np.allclose(metric.compute()[1], np.cov(x.double().numpy().T, bias=True), rtol=1e-9)


def test_radii_over_several_blocks_equal_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 32 of 130 rows: whole ones, their mirror images, and a last one of 2 rows, under k + 1."""
    monkeypatch.setattr("consistune.metrics.neighbours.SIDE", 32)
    x = features(130, 6)
    expected = NearestNeighbors(n_neighbors=4).fit(x.numpy()).kneighbors()[0][:, 2]
    assert np.allclose(radii(x), expected, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_neighbours_and_moments_of_a_cuda_extractor_equal_the_cpus() -> None:
    """Extractor on the device, its features accumulated on the CPU, distances on the device."""
    images = torch.randint(0, 256, (90, 3, 16, 16), dtype=torch.uint8)
    weight = torch.randn(768, 12) / 28
    found = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 12, bias=False)).double()
        network[1].weight.data = weight.T.double()
        protocol = Protocol(name="fd-linear", dim=12)
        place = network.to(device)
        x = Extractor(protocol, lambda u, net=place: net(u.double()), "linear", device)(images)
        metric = Moments(12)
        metric.update(x)
        found.append((*metric.compute(), radii(x, device=device)))
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here, there, rtol=1e-4, atol=1e-5)


def test_one_sample_has_no_covariance() -> None:
    metric = Moments(3)
    metric.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="two samples"):
        metric.compute()


def test_real_against_real_is_the_bias_that_theory_gives() -> None:
    """The average over draws from a known Gaussian, with its own sampling error."""
    covariance = torch.diag(torch.linspace(0.2, 2, 12).double() ** 2)
    n = 800
    found = [frechet(*moments(features(n, 12, seed)), torch.zeros(12), covariance) for seed in range(60)]
    average, error = np.mean(found), np.std(found) / 60**0.5
    assert abs(average - finite_sample_bias(covariance, n)) < 4 * error + 0.02 * average
    assert error < 0.1 * average


@pytest.mark.parametrize(
    ("variances", "of_one"),
    [([4.0], 6.0), ([1.0, 3.0], 6.75), ([0.0, 4.0], 6.0)],  # Σ λ_i + ½·Σ_ij λ_i λ_j (1 + δ_ij)/(λ_i + λ_j)
)
def test_the_bias_of_a_few_features_is_its_formula(variances: list[float], of_one: float) -> None:
    assert finite_sample_bias(torch.tensor(variances).diag(), 10) == pytest.approx(of_one / 10)


def test_the_limit_of_many_samples_takes_the_bias_away() -> None:
    d = 16
    truth = torch.diag(torch.linspace(0.2, 2, d).double() ** 2)
    reference = reference_of(torch.zeros(d).double(), truth)
    draws = [features(2000, d, seed) for seed in range(16)]
    plain = np.mean([frechet(*moments(x), reference.mean, reference.covariance) for x in draws])
    found = np.mean([limit(x, reference) for x in draws])
    assert abs(found) < plain / 3


def test_the_inception_score_equals_torchmetrics_in_one_part() -> None:
    logits = 3 * features(400, 10)
    whole = WholeInceptionScore(feature=torch.nn.Identity(), splits=1)
    whole.features.append(logits)
    ours = InceptionScore(setup_of(torch.zeros(10), torch.eye(10)))
    ours.splits = 1
    found = values_of(ours, logits, (150, 150, 100), logits.softmax(1))["is"]
    assert found == pytest.approx(float(whole.compute()[0]), rel=1e-5)


@pytest.mark.parametrize("n", [100, 103])
def test_the_inception_score_of_parts_is_taken_part_by_part(n: int) -> None:
    probabilities = (2 * features(n, 5)).softmax(1).double()
    metric = InceptionScore(setup_of(torch.zeros(5), torch.eye(5)))
    found = values_of(metric, probabilities, (64, n - 64), probabilities)
    parts = [probabilities[k * n // 10 : (k + 1) * n // 10] for k in range(10)]
    scores = [float((p * (p.log() - p.mean(0).log())).sum(1).mean().exp()) for p in parts]
    error = np.std(scores, ddof=1) / 10**0.5
    assert found == pytest.approx({"is": np.mean(scores), "is_deviation": np.std(scores), "is_error": error})


def test_the_kernel_distance_of_the_whole_equals_the_formula() -> None:
    a, b = features(120, 6).double(), features(120, 6, seed=1, shift=0.4).double()
    found, _ = kernel_distance(a, b, subsets=3, size=1000)
    assert found == pytest.approx(squared_mmd(a, b), rel=1e-6)


def test_the_kernel_distance_of_equals_is_zero_within_its_error() -> None:
    found, error = kernel_distance(features(2000, 8), features(2000, 8, seed=1), subsets=40, size=300)
    assert abs(found) < 4 * error
    far, _ = kernel_distance(features(2000, 8), features(2000, 8, seed=1, shift=0.5), subsets=40, size=300)
    assert far > 20 * error


@pytest.mark.parametrize("on_disk", [False, True])
def test_precision_and_recall_equal_scikit_learns_neighbours(on_disk: bool, tmp_path) -> None:
    real, fake = features(700, 5), features(500, 5, seed=1, shift=0.8)
    rows = real
    if on_disk:
        np.save(tmp_path / "real.npy", real.numpy())
        rows = FeatureFile(tmp_path / "real.npy")
    r_real, r_fake = radii(rows), radii(fake)

    def inside(centres: np.ndarray, queries: np.ndarray) -> float:
        k_th = NearestNeighbors(n_neighbors=4).fit(centres).kneighbors(centres)[0][:, -1]
        apart = np.linalg.norm(queries[:, None] - centres[None], axis=-1)
        return float((apart <= k_th).any(1).mean())

    found = neighbourhoods(rows, fake, r_real, r_fake)
    assert found.precision == pytest.approx(inside(real.numpy(), fake.numpy()), abs=1e-9)
    assert found.recall == pytest.approx(inside(fake.numpy(), real.numpy()), abs=1e-9)
    nearest = KNeighborsClassifier(1).fit(real.numpy(), np.arange(len(real)))
    assert (nearest.predict(fake.numpy()) == found.rows.numpy()).all()


def test_recall_sees_a_mode_that_is_missing_and_precision_one_that_is_invented() -> None:
    mode = lambda at, seed: features(400, 4, seed, shift=at)
    both, one = torch.cat([mode(0, 0), mode(20, 1)]), torch.cat([mode(0, 2), mode(0, 3)])
    dropped = neighbourhoods(both, one, radii(both), radii(one))
    assert dropped.precision > 0.8
    assert 0.3 < dropped.recall < 0.55
    invented = neighbourhoods(one, both, radii(one), radii(both))
    assert 0.3 < invented.precision < 0.55
    assert invented.recall > 0.8
