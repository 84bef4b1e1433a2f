"""Options of sampling that a model cannot take, or that would change nothing, are refused by name."""

import pytest
import torch

from consistune.core.sampling import ODE, Multistep, PhasedSteps
from consistune.errors import UserError
from consistune.evaluation.settings import check_guidance, chosen_sampler
from consistune.models import default_sampler
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP


def model(classes: int = 10, side: int = 8, **card: object) -> EDMPrecond:
    torch.manual_seed(0)
    made = EDMPrecond(ResidualMLP((1, side, side), num_classes=classes, width=8, blocks=1))
    made.card = ModelCard.from_json(card)
    return made


FLOW = model(objective="consistency", mid_t=(0.8,))
DIFFUSION = model(objective="diffusion")
PHASED = model(objective="consistency", edges=(1.0, 5.0))


@pytest.mark.parametrize(
    ("of", "steps", "mid_t", "eta", "words"),
    [
        (FLOW, None, (0.8,), None, "--mid-t: .* belong to 2 steps, not to 1; add --steps 2"),
        (FLOW, 1, (0.8,), None, "--mid-t: .*add --steps 2"),
        (FLOW, 3, (0.8,), None, "--mid-t"),
        (FLOW, 2, (1e9,), None, "--mid-t: .*between 0 and 80"),
        (FLOW, 2, (-1.0,), None, "--mid-t: -1 is not allowed"),
        (FLOW, 3, (0.5, 0.8), None, "--mid-t: .*falling"),
        (FLOW, 2, (float("inf"),), None, "--mid-t"),
        (FLOW, 1, None, 0.3, "--eta: has no effect: the model has no phases"),
        (FLOW, 5, None, None, "--steps"),
        (DIFFUSION, 5, (0.8,), None, "--mid-t: has no effect: the model is a diffusion model"),
        (DIFFUSION, 5, None, 0.3, "--eta: has no effect"),
        (PHASED, 2, None, None, "--steps 2: this model has 3 phases; use 1 or 3"),
        (PHASED, 1, None, 0.3, "--eta: has no effect in one step"),
        (PHASED, None, (0.8,), None, "--mid-t: has no effect: the model steps from edge"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(of, steps, mid_t, eta, words) -> None:
    with pytest.raises(UserError, match=words):
        chosen_sampler(of, steps, mid_t, eta)


def test_what_fits_is_taken() -> None:
    assert chosen_sampler(FLOW, 3, (2.0, 0.5), None) == Multistep((2.0, 0.5))
    assert chosen_sampler(DIFFUSION, 5, None, None) == ODE(steps=5)
    assert chosen_sampler(PHASED, 3, None, 0.3) == PhasedSteps((1.0, 5.0), 0.3)
    assert chosen_sampler(PHASED, 1, None, None) == PhasedSteps((1.0, 5.0), 0.0)


@pytest.mark.parametrize(
    ("of", "worse", "omega", "words"),
    [
        (FLOW, FLOW, 1.0, "--worse: has no effect with --guidance 1"),
        (model(0), None, 2.0, "no unlabelled branch"),
        (model(label_dropout=0.0), None, 2.0, "--guidance: .*not trained .*label_dropout"),
        (FLOW, model(side=4), 2.0, "--worse: .* other images"),
        (FLOW, model(0), 2.0, "--worse: .* other classes: 0, the model has 10"),
        (model(data_sha256="a"), model(data_sha256="b"), 2.0, "--worse: .* other data"),
        (FLOW, model(objective="diffusion"), 2.0, "--worse: .* other kind: denoiser, the model has flow-map"),
        (FLOW, PHASED, 2.0, "--worse: .* other phases"),
    ],
)
def test_guidance_that_cannot_work_is_refused(of, worse, omega, words) -> None:
    with pytest.raises(UserError, match=words):
        check_guidance(of, worse, omega, "--guidance")


@pytest.mark.parametrize(("of", "steps"), [(model(), None), (FLOW, 3), (PHASED, 2)])
def test_python_names_what_does_not_fit_as_the_commands_do(of, steps) -> None:
    for kind in (UserError, ValueError):
        with pytest.raises(kind, match="steps"):
            default_sampler(of, steps)


def test_guidance_that_works_is_taken() -> None:
    check_guidance(model(label_dropout=0.1), None, 2.0, "--guidance")
    check_guidance(model(), None, 2.0, "--guidance")  # an older model does not say
    check_guidance(model(data_sha256="a"), model(), 2.0, "--guidance")
    check_guidance(model(0), model(0), 2.0, "--guidance")
