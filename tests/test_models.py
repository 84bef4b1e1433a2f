"""Sampling: an image belongs to its seed."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from consistune import models
from consistune.core.estimators import OneSample
from consistune.core.noise import EDM, VP, RectifiedFlow, Trigonometric
from consistune.core.objectives import Consistency, Denoising
from consistune.core.rng import Between
from consistune.core.sampling import ODE, Multistep, PhasedSteps
from consistune.core.times import ConstGap, LogNormalPairs, Phased
from consistune.data.images import digits
from consistune.errors import UserError
from consistune.models import BOX, default_sampler, find, sample
from consistune.nn import store
from consistune.nn.baselines import VEPrecond
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.training.loop import Trainer
from consistune.training.optim import Optimizer
from consistune.training.options import TrainOptions


@pytest.fixture
def model() -> EDMPrecond:
    torch.manual_seed(0)
    network = ResidualMLP((1, 8, 8), num_classes=10, width=32, blocks=2, dropout=0.5)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = EDMPrecond(network)
    model.card = ModelCard(objective="consistency", mid_t=(0.8,))
    return model


@pytest.mark.parametrize("steps", [1, 2])
def test_an_image_depends_on_its_seed_alone(model: EDMPrecond, steps: int) -> None:
    together = sample(model, range(40), steps)
    for batch in (1, 7, 64):
        apart = sample(model, range(40), steps, batch=batch)
        # Matrix products of other sizes may round the last bit differently: one level, hardly ever.
        assert (together.int() - apart.int()).abs().max() <= 1
        assert (together != apart).float().mean() < 1e-3
    assert torch.equal(sample(model, [31, 5], steps, batch=40)[1], sample(model, [5], steps, batch=40)[0])
    assert not torch.equal(together[10], together[20])  # the same class, another seed


def test_dropout_is_off_and_the_mode_is_given_back(model: EDMPrecond) -> None:
    model.train()
    assert torch.equal(sample(model, range(4)), sample(model, range(4)))
    assert model.training


def test_a_worse_model_in_training_mode_does_not_drop_out(model: EDMPrecond) -> None:
    worse = copy.deepcopy(model).train()
    first, second = (sample(model, range(2), guidance=1.5, worse=worse) for _ in range(2))
    assert torch.equal(first, second)
    assert worse.training


def test_labels_of_every_integer_type_are_alike(model: EDMPrecond) -> None:
    expected = sample(model, range(2), condition=torch.tensor([3, 4]))
    for given in ([3, 4], np.array([3, 4], np.uint16), torch.tensor([3, 4], dtype=torch.uint8)):
        assert torch.equal(sample(model, range(2), condition=given), expected)


def test_labels_matter_and_must_fit(model: EDMPrecond) -> None:
    assert not torch.equal(sample(model, [0], condition=3), sample(model, [0], condition=4))
    assert torch.equal(sample(model, [13]), sample(model, [13], condition=3))
    with pytest.raises(UserError, match="0 … 9"):
        sample(model, [0], condition=10)
    with pytest.raises(UserError, match="2 conditions for 1 seeds"):
        sample(model, [0], condition=torch.tensor([1, 2]))


def test_guidance_by_the_unlabelled_branch_changes_the_image(model: EDMPrecond) -> None:
    assert torch.equal(sample(model, range(8)), sample(model, range(8), guidance=1.0, worse=model))
    assert not torch.equal(sample(model, range(8)), sample(model, range(8), guidance=2.0))
    assert torch.equal(sample(model, range(8)), sample(model, range(8), guidance=2.0, worse=model))


def test_guidance_acts_in_its_interval_alone(model: EDMPrecond) -> None:
    plain, guided = sample(model, range(8), 2), sample(model, range(8), 2, guidance=2.0)
    outside = sample(model, range(8), 2, guidance=2.0, guidance_interval=(100.0, 200.0))
    first = sample(model, range(8), 2, guidance=2.0, guidance_interval=(1.0, 80.0))
    assert torch.equal(outside, plain)
    assert not torch.equal(first, plain)
    assert not torch.equal(first, guided)


def test_the_sampler_fits_the_model(model: EDMPrecond) -> None:
    assert default_sampler(model, 2) == Multistep((0.8,))
    assert default_sampler(model, None) == Multistep(())
    with pytest.raises(ValueError, match="mid_t"):
        default_sampler(model, 3)
    assert default_sampler(model, 3, (2.0, 0.5)) == Multistep((2.0, 0.5))
    model.card = model.card.updated(edges=(1.0,))
    assert default_sampler(model, 2, eta=0.7) == PhasedSteps((1.0,), 0.7)
    assert default_sampler(model, 1) == PhasedSteps((1.0,), 0.0)
    model.card = model.card.updated(objective="diffusion")
    assert default_sampler(model, None) == ODE(steps=18)


def test_a_diffusion_model_is_sampled_over_its_own_noise_levels() -> None:
    model = VEPrecond(ResidualMLP((1, 8, 8), width=8, blocks=1))
    model.card = ModelCard(objective="diffusion")
    assert default_sampler(model, None) == ODE(steps=18, low=model.sigma_min, high=80.0)
    assert model.sigma_min > ODE.low


def test_times_between_the_steps_are_looked_at(model: EDMPrecond) -> None:
    for wrong in ((math.nan,), (100.0,), (0.0,)):
        with pytest.raises(UserError, match="must fall between 80 and 0"):
            sample(model, range(1), steps=2, mid_t=wrong)
    with pytest.raises(UserError, match="must fall"):
        sample(model, range(1), steps=3, mid_t=(1.0, 5.0))
    for steps in (None, 1):
        with pytest.raises(UserError, match="1 times between belong to 2 steps, not to 1"):
            sample(model, range(1), steps=steps, mid_t=(1.0,))
    model.card = model.card.updated(lowest=1.0)
    assert default_sampler(model, 2, (1.0,)) == Multistep((1.0,))
    with pytest.raises(UserError, match="no noise level below 1"):
        sample(model, range(1), steps=2, mid_t=(0.9,))


def test_options_without_effect_and_wrong_ones_are_refused(model: EDMPrecond) -> None:
    for options, words in (
        ({"batch": -1}, "batch: "),
        ({"batch": 0}, "batch: "),
        ({"eta": 0.5, "sampler": Multistep()}, "belong to the default sampler"),
        ({"guidance_interval": (0.0, 5.0)}, "without guidance"),
        ({"guidance": 2.0, "guidance_interval": (5.0, 1.0)}, "is no interval"),
        ({"guidance": 2.0, "guidance_interval": (math.nan, math.nan)}, "is no interval"),
        ({"steps": "2"}, "sample: "),
        ({"steps": 2, "mid_t": 0.5}, "sample: "),
        ({"seeds": [2**70]}, "seeds: .*64 bits"),
        ({"seeds": [Between(0, 2**70, 0.5)]}, "seeds: .*64 bits"),
        ({"seeds": [Between(0, 1, 5)]}, "seeds: 5 is no share"),
        ({"seeds": [Between(0, 1, math.nan)]}, "seeds: nan is no share"),
        ({"seeds": [Between(0, 1, "a")]}, "seeds: 'a' is no share"),
        ({"seeds": [Between(0.7, 1, 0.5)]}, "are no integers"),
        ({"eta": math.nan}, "eta: nan is no share"),
        ({"eta": 7}, "eta: 7 is no share"),
        ({"eta": "a"}, "eta: 'a' is no share"),
        ({"guidance": math.nan}, "guidance: nan is no weight"),
        ({"guidance": "2"}, "guidance: '2' is no weight"),
        ({"guidance": 2.0, "worse": "emoji64"}, "worse: 'emoji64' is no model"),
        ({"guidance": 2.0, "guidance_interval": 5}, "is no interval"),
        ({"guidance": 2.0, "guidance_interval": None}, "is no interval"),
        ({"condition": torch.eye(10).long()[:1]}, r"condition has shape \[1, 10\], expected \[1\]"),
        ({"condition": torch.ones(1) * 1j}, "complex"),
        ({"condition": {"a": 1}}, "is no label"),
        ({"condition": "cat"}, "sample: condition 'cat' is no label: give a class's number"),
        ({"steps": True}, "sample: steps is True: give an integer"),
        ({"steps": 1.0}, "sample: steps is 1.0: give an integer"),
        *(
            ({"steps": 2, "mid_t": wrong}, "sample: mid_t is .*: give a list of noise levels")
            for wrong in (0.5, "0.8", ["a"], [None])
        ),
        ({"steps": 2, "mid_t": [1e-9]}, "no noise level below 0.002"),
    ):
        with pytest.raises(UserError, match=words):
            sample(model, **({"seeds": range(1)} | options))
    model.card = model.card.updated(label_dropout=0.0)
    with pytest.raises(UserError, match="unlabelled branch is not trained"):
        sample(model, range(1), guidance=2.0)
    model.card = model.card.updated(objective="diffusion")
    with pytest.raises(UserError, match="leave mid_t out"):
        sample(model, range(1), mid_t=(0.5,))


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VP(), Trigonometric()], ids=lambda s: type(s).__name__)
def test_times_between_are_noise_levels_under_every_schedule(model: EDMPrecond, schedule) -> None:
    middle = float(schedule.time_at(torch.tensor(0.8, dtype=torch.float64)))
    by_hand = sample(model, range(4), sampler=Multistep((middle,)), schedule=schedule)
    assert torch.equal(sample(model, range(4), steps=2, schedule=schedule), by_hand)
    model.card = model.card.updated(edges=(0.8,))
    by_hand = sample(model, range(4), sampler=PhasedSteps((middle,)), schedule=schedule)
    assert torch.equal(sample(model, range(4), steps=2, schedule=schedule), by_hand)


def test_two_times_alone_are_no_jumps() -> None:
    """What was learned decides: a two-time network may be a consistency model, or a diffusion model."""
    network = ResidualMLP((1, 8, 8), 10, width=8, blocks=1, second_time=True)
    model = EDMPrecond(network)
    samplers = {"mean-velocity": PhasedSteps((0.5, 2.0)), "consistency": Multistep((2.0, 0.5))}
    for objective, sampler in (samplers | {"trajectory": Multistep((2.0, 0.5))}).items():
        model.card = ModelCard().updated(objective=objective)
        assert default_sampler(model, 3, (2.0, 0.5)) == sampler
    model.card = ModelCard().updated(objective="diffusion")
    assert default_sampler(model, None) == ODE(steps=18)


def test_a_model_of_which_nothing_is_known_needs_steps_or_a_sampler(model: EDMPrecond) -> None:
    model.card = ModelCard()
    with pytest.raises(UserError, match="give steps or a sampler"):
        sample(model, range(2))
    one_step = sample(model, range(2), steps=1)
    assert torch.equal(one_step, sample(model, range(2), sampler=Multistep(())))


def test_steps_beside_a_sampler_are_refused(model: EDMPrecond) -> None:
    with pytest.raises(UserError, match="give them or a sampler"):
        sample(model, range(2), steps=2, sampler=Multistep(()))


def test_a_denoiser_that_was_trained_in_python_is_sampled_as_a_diffusion_model(model: EDMPrecond) -> None:
    """By as many Heun steps as a stored one; tuning it makes it a model of one step."""
    model.card = ModelCard()
    options = TrainOptions(images=64, batch=32)
    data = digits().train
    denoiser = Trainer(model, Denoising(EDM()), data, Optimizer(), options).averaged
    assert default_sampler(denoiser, None) == ODE(steps=18)
    assert denoiser.card.data_sha256 == data.fingerprint
    assert denoiser.card.class_names == data.class_names
    schedule = RectifiedFlow()
    law = LogNormalPairs(gap=ConstGap(every_images=1000), schedule=schedule)
    objective = Consistency(schedule, Phased(law, edges=(0.5,)), OneSample())  # σ/α = 1 at t = 0.5
    tuned = Trainer(denoiser, objective, data, Optimizer(), options).averaged
    assert default_sampler(tuned, None) == PhasedSteps((1.0,), 1.0)


def test_images_that_are_not_finite_are_an_error_that_names_their_seeds(model: EDMPrecond) -> None:
    model.train()
    with torch.no_grad():  # of the ten classes, one has an embedding that overflows
        assert isinstance(model.network.map_label, torch.nn.Linear)
        model.network.map_label.weight[:, 3] = 3e38
    assert sample(model, [4, 5]).shape == (2, 1, 8, 8)
    with pytest.raises(UserError, match=r"2 of 4 samples .* \(seeds 3, 13\)"):
        sample(model, [2, 3, 4, 13])
    assert model.training


def test_a_built_in_model_is_found_by_its_name_unless_a_path_has_it(tmp_path: Path, monkeypatch) -> None:
    box, here = tmp_path / "box", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(models, "BOX", box)
    networks = [EDMPrecond(ResidualMLP((1, 8, 8), width=width, blocks=1)) for width in (8, 16)]
    store.save(networks[0], box / "small")
    assert models.load("small").network.options["width"] == 8
    with pytest.raises(UserError, match="no such model folder"):
        models.load("large")
    store.save(networks[1], here / "small")
    assert models.load("small").network.options["width"] == 16


def test_a_folder_without_a_model_does_not_hide_the_built_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji64").mkdir()
    (tmp_path / "emoji64" / "000000.png").write_text("a sample")
    assert find("emoji64") == BOX / "emoji64"
    (tmp_path / "emoji64" / "model").mkdir()
    assert find("emoji64") == Path("emoji64")


def test_every_part_of_a_model_keeps_its_mode(model: EDMPrecond) -> None:
    model.train()
    model.network.leave.eval()
    modes = [module.training for module in model.modules()]
    sample(model, [0])
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_labels_may_be_a_list_and_a_sampler_is_no_class(model: EDMPrecond) -> None:
    assert torch.equal(
        sample(model, [0, 1], condition=[3, 4]), sample(model, [0, 1], condition=torch.tensor([3, 4]))
    )
    with pytest.raises(UserError, match=r"sampler: Multistep is a class; give Multistep\(…\)"):
        sample(model, [0], sampler=Multistep)
