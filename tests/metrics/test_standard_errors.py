"""Standard errors equal the spread over repeated draws."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from consistune.metrics.frechet import frechet, standard_error
from consistune.metrics.inception_score import InceptionScore
from consistune.metrics.kernel import _variance, kernel_distance
from consistune.metrics.moments import moments
from tests.support.metrics import setup_of, squared_mmd, values_of

Draw = Callable[[], tuple[float, float | None]]


def ratio(draw: Draw, times: int) -> float:
    """The root of the mean squared reported error, over the spread of the value: known to 1/√(2·times)."""
    values, errors = torch.tensor([draw() for _ in range(times)], dtype=torch.float64).T
    return float(errors.square().mean().sqrt() / values.std())


@pytest.mark.parametrize(
    ("real", "samples", "shift", "size"),
    [
        (100, 100, 0.05, 1000),  # every subset is the whole set
        (151, 151, 0.05, 150),  # almost the whole set
        (400, 250, 0.5, 100),
        (60, 600, 0.0, 50),
    ],
)
def test_the_kernel_distances_error_covers_both_sets(
    real: int, samples: int, shift: float, size: int, generator: torch.Generator
) -> None:
    def draw() -> tuple[float, float | None]:
        a, b = (torch.randn(n, 16, generator=generator) for n in (real, samples))
        return kernel_distance(a, b + shift, subsets=40, size=size)

    assert ratio(draw, 100) == pytest.approx(1, abs=0.25)


def test_the_parts_of_the_kernel_distances_variance_have_their_weights() -> None:
    """4σ²_x/m + 4σ²_y/n + 2τ_xx/(m(m − 1)) + 2τ_yy/(n(n − 1)) + 4τ_xy/(mn) with m = 4 and n = 5."""
    found = _variance(torch.eye(5, dtype=torch.float64), 4, 5)
    assert found.tolist() == pytest.approx([1, 0.8, 1 / 6, 0.1, 0.2])


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize(("n", "shift"), [(200, 0.0), (200, 0.8), (1500, 0.1)])
def test_the_frechet_distances_error_is_that_of_the_samples(
    n: int, shift: float, heavy: bool, generator: torch.Generator
) -> None:
    mix = torch.randn(16, 16, generator=generator) / 4

    def features(count: int) -> Tensor:
        z = torch.randn(count, 16, generator=generator)
        return (z.abs() ** 1.5 if heavy else z) @ mix

    reference = moments(features(50_000))

    def draw() -> tuple[float, float]:
        x = features(n) + shift / 4
        own = moments(x)
        return frechet(*own, *reference), standard_error(x, *own, reference)

    assert ratio(draw, 100) == pytest.approx(1.1, abs=0.3)


def test_the_inception_scores_error_is_that_of_its_mean(generator: torch.Generator) -> None:
    metric = InceptionScore(setup_of(torch.zeros(5), torch.eye(5)))

    def draw() -> tuple[float, float]:
        chances = (2 * torch.randn(400, 5, generator=generator)).softmax(1)
        values = values_of(metric, chances, (400,), chances)
        return values["is"], values["is_error"]

    assert ratio(draw, 150) == pytest.approx(1, abs=0.2)


def test_too_few_rows_have_no_error(generator: torch.Generator) -> None:
    a, b = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    distance, error = kernel_distance(a, b)
    assert distance == pytest.approx(squared_mmd(a, b), rel=1e-6)
    assert error is None


def test_one_row_has_no_kernel_distance(generator: torch.Generator) -> None:
    with pytest.raises(ValueError, match="needs two rows of each set, got 1 and 9"):
        kernel_distance(torch.randn(1, 4, generator=generator), torch.randn(9, 4, generator=generator))
