"""Measures: equal to independent computations, and moved by what they should see."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.neighbors import NearestNeighbors

from consistune.data.images import digits
from consistune.metrics.frechet import RelativeFrechet, frechet
from consistune.metrics.memorisation import nearest_distances
from consistune.metrics.moments import moments
from consistune.metrics.scores import score_suite, scores
from consistune.metrics.suite import Suite
from tests.support.metrics import setup_of, values_of


def test_frechet_equals_the_reference(parity_folder: Path) -> None:
    z = np.load(parity_folder / "frechet" / "frechet.npz")
    cases = [key.removeprefix("frechet_") for key in z.files if key.startswith("frechet_")]
    assert cases
    for case in cases:
        given = [torch.from_numpy(z[f"{name}_{case}"]) for name in ("mu1", "cov1", "mu2", "cov2")]
        assert frechet(*given) == pytest.approx(float(z[f"frechet_{case}"]), rel=1e-9)


@pytest.mark.parametrize("converges", [True, False])
def test_frechet_of_singular_covariances_equals_the_square_root_of_the_product(
    converges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where LAPACK's eigenproblem does not converge."""

    def diverged(_: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")

    if not converges:
        monkeypatch.setattr(torch.linalg, "eigh", diverged)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 6)), rng.normal(size=(20, 9))
    first, second = a @ a.T, b @ b.T  # rank 6 and 9 of 20
    assert np.trace(sqrtm(first @ second).real) == pytest.approx(np.linalg.norm(a.T @ b, "nuc"), rel=1e-6)
    expected = np.trace(first) + np.trace(second) - 2 * np.linalg.norm(a.T @ b, "nuc")
    zero = torch.zeros(20)
    found = frechet(zero, torch.from_numpy(first), zero, torch.from_numpy(second))
    assert found == pytest.approx(expected, rel=1e-12)
    assert frechet(zero, torch.from_numpy(first), zero, torch.from_numpy(first)) == pytest.approx(0, abs=1e-9)


def test_moments_are_unbiased() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    mean, covariance = moments(x)
    assert np.allclose(covariance, np.cov(x.double().numpy().T))
    assert np.allclose(mean, x.double().mean(0))


def relative_frechet(samples: torch.Tensor, real: torch.Tensor) -> float:
    return values_of(RelativeFrechet(setup_of(*moments(real))), samples, [len(samples)])["fd-pixels_percent"]


def test_relative_frechet_of_scaled_features_is_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 5, generator=generator), 1.3 * torch.randn(300, 5, generator=generator)
    assert relative_frechet(10 * a, 10 * b) == pytest.approx(relative_frechet(a, b), rel=1e-6)
    expected = 100 * frechet(*moments(a), *moments(b)) / np.cov(b.double().numpy().T).trace()
    assert relative_frechet(a, b) == pytest.approx(expected, rel=1e-9)


def test_nearest_neighbours_equal_scikit_learns() -> None:
    data = digits()
    queries, images = data.held_out.images[:100], data.train.images
    distances, rows = nearest_distances(queries, images, block=17)
    expected = (
        NearestNeighbors(n_neighbors=1).fit(images.flatten(1).numpy()).kneighbors(queries.flatten(1).numpy())
    )
    assert np.allclose(distances, expected[0][:, 0], atol=1e-6)
    assert (rows.numpy() == expected[1][:, 0]).all()


@pytest.fixture(scope="module")
def suite() -> Suite:
    return score_suite(digits())


def test_the_classifier_is_good_and_repeatable(suite: Suite) -> None:
    held_out = digits().held_out
    assert scores(suite, held_out.images, held_out.labels).accuracy >= 0.97
    assert score_suite(digits()).setup.extractor.identity == suite.setup.extractor.identity


def test_measures_react_as_they_should(suite: Suite) -> None:
    data = digits()
    generator = torch.Generator().manual_seed(0)
    held_out, labels = data.held_out.images, data.held_out.labels
    noisy = (held_out.float() + 60 * torch.randn(held_out.shape, generator=generator)).clamp(0, 255).byte()
    pure = torch.randint(0, 256, held_out.shape, generator=generator, dtype=torch.uint8)
    real, worse, worst = (scores(suite, x, labels) for x in (held_out, noisy, pure))
    assert real.frechet_train < 2 < worse.frechet_train < worst.frechet_train
    assert real.frechet_held_out == pytest.approx(0, abs=1e-6)
    assert real.memorisation == pytest.approx(1)
    assert worst.accuracy is not None
    assert worst.accuracy < 0.3
    copies = scores(suite, data.train.images, data.train.labels)
    assert copies.frechet_train == pytest.approx(0, abs=1e-6)
    assert copies.memorisation == 0
    half = data.train.labels < 5
    assert scores(suite, data.train.images[half], data.train.labels[half]).frechet_train > 10


def test_memorisation_sees_half_copies(suite: Suite) -> None:
    data = digits()
    mixed = torch.cat([data.train.images[:297], data.held_out.images])
    assert scores(suite, mixed).memorisation == pytest.approx(0.5)
