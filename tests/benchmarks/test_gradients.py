"""The noise of a step's gradient, as benchmarks/gradients.py measures it."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import read_recipe

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gradients

    return gradients


def test_the_noise_is_the_variance_over_the_squared_mean(script) -> None:
    draw = torch.Generator().manual_seed(0)
    scatter = 0.5 * torch.randn(20_000, 8, generator=draw, dtype=torch.float64)
    mean = torch.tensor([3.0, 1.0] + [0.0] * 6, dtype=torch.float64)
    assert script.noise_of(mean + scatter) == pytest.approx(8 * 0.5**2 / 10, rel=0.02)


def test_the_squared_mean_has_no_bias_from_few_draws(script) -> None:
    draw = torch.Generator().manual_seed(1)
    few = 0.2 + torch.randn(4, 50_000, generator=draw, dtype=torch.float64)
    assert script.noise_of(few) == pytest.approx(1 / 0.2**2, rel=0.15)  # 3.4 with the bias of four draws


def test_a_mean_that_cannot_be_told_from_zero_is_refused(script) -> None:
    with pytest.raises(ValueError, match="2 draws are too few"):
        script.noise_of(torch.tensor([[1.0, 0.0], [-1.0, 0.1]]))


def test_a_reference_of_one_image_has_the_gradients_of_one_sample(script) -> None:
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), 10, width=8, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = EDMPrecond(network)

    def found(estimator: str) -> torch.Tensor:
        recipe = read_recipe("digits-ect", [f"estimator={estimator}", "train.batch=16", "start_from=null"])
        return script.gradients(recipe, model, 96_000, 3)

    plain = found("{kind: one-sample}")
    alone = found("{kind: score-identity, reference: class, size: 1}")
    torch.testing.assert_close(alone, plain, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found("{kind: score-identity, reference: class}"), plain, rtol=1e-2)
    assert plain.shape == (3, sum(parameter.numel() for parameter in model.parameters()))


def test_one_samples_mean_pull_is_the_exact_one_until_the_loss_is_normalised(script) -> None:
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), 10, width=16, blocks=1, second_time=True)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = Namespace(queries=16, redraws=64)

    def found(p: float) -> dict[str, float]:
        keys = ["estimator={kind: one-sample}", f"scale={{kind: adaptive-power, p: {p}, c: 1e-3}}"]
        return script.compared(EDMPrecond(network), read_recipe("digits-meanflow", keys), 1.0, given)

    linear, normalised = found(0.0), found(1.0)
    assert linear["size"] == pytest.approx(1.0, abs=2e-3)
    assert linear["cosine"] == pytest.approx(1.0, abs=2e-3)
    assert normalised["size"] < 0.985


@pytest.mark.parametrize("recipe", ["digits-ect", "digits-sct-continuous"])
def test_where_the_posterior_is_one_image_one_sample_has_no_bias(script, recipe: str) -> None:
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), 10, width=16, blocks=1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    given = Namespace(queries=8, redraws=8)
    keys = ["estimator={kind: one-sample}", "uncertainty=false"][: 1 + (recipe != "digits-ect")]
    sharp, blurred = (
        script.compared(EDMPrecond(network), read_recipe(recipe, keys), ratio, given) for ratio in (0.05, 1.0)
    )
    assert sharp["size"] == pytest.approx(1.0, abs=1e-3)
    assert sharp["cosine"] == pytest.approx(1.0, abs=1e-3)
    assert blurred["size"] < 0.995
