"""Genuine files give the published implementations' numbers: networks, samplers, ECT's losses.

Fixtures: ../shared/parity/README.md, which also says how exact the references themselves are.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import consistune
from consistune.core.estimators import OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency, Huber, InverseGap
from consistune.core.rng import ImageNoise
from consistune.core.sampling import ODE, Multistep
from consistune.core.times import SigmoidGap, karras_grid
from consistune.core.types import Batch, Condition, Times
from consistune.interop.reading import read_checkpoint
from consistune.nn.edm2 import EDM2Precond
from consistune.nn.precond import CMPrecond, EDMPrecond, Preconditioned
from tests.support.noise import Stored

Parity = Callable[[str], dict[str, Tensor]]
NAMES = [
    "ect_imgnet_snapshot",
    "ect_snapshot",
    "edm-adm-cond",
    "edm-ddpmpp-uncond",
    "edm-ncsnpp-cond",
    "edm2-a",
    "edm2_latent",
    "edm_legacy",
    "ve-ncsnpp-uncond",
    "vp-ddpmpp-cond",
]
SCHEDULE = EDM()


@cache
def model(parity_folder: Path, name: str) -> Preconditioned:
    return consistune.load(parity_folder / "networks" / f"{name}.pkl").requires_grad_(False)


def difference(value: Tensor, reference: Tensor) -> float:
    """max |difference| / max |reference|."""
    assert value.shape == reference.shape
    return float((value.double() - reference.double()).abs().max() / reference.double().abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_is_the_published_one(name: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(f"networks/{name}"), model(parity_folder, name)
    x, sigma = stored["x"], stored["sigma"]
    labels = stored["class_labels"].float() if "class_labels" in stored else None
    augment = stored.get("augment_labels")
    if "D_x_augmented" in stored:  # the first set leaves augmentation out of D_x, the second puts it in
        assert (
            difference(denoiser(x, sigma, Condition(labels, augment=augment)), stored["D_x_augmented"])
            <= 1e-5
        )
        augment = None
    checks = {
        "D_x": denoiser(x, sigma, Condition(labels, augment=augment)),
        "D_x_noaug": denoiser(x[:3], sigma[:3], None),
    }
    if labels is not None:
        rest = None if augment is None else augment[:3]
        checks["D_x_nolabel"] = denoiser(x[:3], sigma[:3], Condition(augment=rest))
        checks["D_x_noaug"] = denoiser(x[:3], sigma[:3], labels[:3])
    found = {key: difference(value, stored[key]) for key, value in checks.items() if key in stored}
    assert "D_x" in found
    assert max(found.values()) <= 1e-5, found


IN_FLOAT64 = {"ect_imgnet_snapshot": 1e-12, "edm2_latent": 1e-12, "ect_snapshot": 1e-8, "edm_legacy": 1e-8}
"""EDM's attention takes its softmax in float32 whatever the network's dtype, ours in the network's."""


@pytest.mark.parametrize(("name", "room"), IN_FLOAT64.items())
def test_the_denoiser_in_float64(name: str, room: float, parity_folder: Path, parity: Parity) -> None:
    stored = parity(f"networks/{name}")
    denoiser = consistune.load(parity_folder / "networks" / f"{name}.pkl").requires_grad_(False).double()
    x, sigma = stored["x"].double(), stored["sigma"].double()
    labels, augment = (
        stored[key].double() if key in stored else None for key in ("class_labels", "augment_labels")
    )
    few = lambda rows: None if rows is None else rows[:3]
    checks = {
        "D_x_f64": denoiser(x, sigma, Condition(labels, augment=augment)),
        "D_x_nolabel_f64": denoiser(x[:3], sigma[:3], Condition(augment=few(augment))),
        "D_x_noaug_f64": denoiser(x[:3], sigma[:3], Condition(few(labels))),
    }
    if isinstance(denoiser, EDM2Precond) and "logvar_f64" in stored:
        checks["logvar_f64"] = denoiser.log_variance(sigma)
    if "D_x_trainmode_nodropout_f64" in stored:
        checks["D_x_trainmode_nodropout_f64"] = without_dropout(denoiser)(x, sigma)
    assert {key for key in stored if key.endswith("_f64")} <= checks.keys()
    for key in checks.keys() & stored.keys():
        assert difference(checks[key], stored[key]) <= room, key


def without_dropout(denoiser: Preconditioned) -> Preconditioned:
    """In training mode, where ECT's boundary is not shifted."""
    for module in denoiser.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return denoiser


def test_the_scalings_of_consistency_models(parity: Parity) -> None:
    """c_skip, c_out and c_in with the boundary at 0.002, and EDM's."""
    stored = parity("openai_cm/openai_cm")
    for kind, name in ((CMPrecond, "boundary"), (EDMPrecond, "edm")):
        scalings = kind(torch.nn.Identity()).scalings(stored["sigma"].double())
        for part in ("c_skip", "c_out", "c_in"):
            key = f"{name}_{part}"
            assert difference(getattr(scalings, part), stored[key]) <= 1e-6, key


@pytest.mark.parametrize("name", ["edm2-a", "edm2_latent"])
def test_the_learned_log_variance(name: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(f"networks/{name}"), model(parity_folder, name)
    assert isinstance(denoiser, EDM2Precond)
    assert difference(denoiser.log_variance(stored["sigma"]), stored["logvar"]) <= 1e-5


@pytest.mark.parametrize(
    "name", ["edm-adm-cond", "edm-ddpmpp-uncond", "edm-ncsnpp-cond", "ve-ncsnpp-uncond", "vp-ddpmpp-cond"]
)
def test_rounded_noise_levels(name: str, parity_folder: Path, parity: Parity) -> None:
    stored = parity(f"networks/{name}")
    rounded = model(parity_folder, name).round_sigma(stored["sigma"])
    torch.testing.assert_close(rounded, stored["round_sigma"].to(rounded), rtol=1e-7, atol=0)


def test_the_training_forms(parity_folder: Path, parity: Parity) -> None:
    """ECT's unshifted boundary; EDM2's weights, normalised by one training pass."""
    stored = parity("networks/ect_snapshot")
    ect = without_dropout(consistune.load(parity_folder / "networks" / "ect_snapshot.pkl"))
    assert difference(ect(stored["x"], stored["sigma"]).detach(), stored["D_x_trainmode_nodropout"]) <= 1e-5
    assert difference(ect.eval()(stored["x"], stored["sigma"]).detach(), stored["D_x"]) <= 1e-5

    stored = parity("networks/edm2_latent")
    edm2 = consistune.load(parity_folder / "networks" / "edm2_latent.pkl").train()
    first = edm2.state_dict()["unet.enc.8x8_conv.weight"]
    torch.testing.assert_close(first, stored["first_conv_weight_before"].float(), rtol=0, atol=0)
    trained = edm2(stored["x"], stored["sigma"], stored["class_labels"].float()).detach()
    assert difference(trained, stored["D_x_train"]) <= 1e-5
    assert difference(first, stored["first_conv_weight_after_train_forward"]) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_that_were_written(name: str, parity_folder: Path) -> None:
    path = parity_folder / "networks" / f"{name}.pkl"
    tensors, own = read_checkpoint(path).tensors, model(parity_folder, name).state_dict()
    assert list(tensors) == list(own)
    written = json.loads(path.with_suffix(".json").read_text()).get("state_dict", {})
    for key, facts in written.items():
        assert tensors[key].shape == tuple(facts["shape"])
        assert tensors[key].dtype == facts["dtype"]
        assert own[key].dtype == torch.float32
        assert float(own[key].double().abs().sum()) == pytest.approx(facts["abs_sum"], rel=1e-7)


@pytest.mark.parametrize(
    ("key", "sampler"),
    [("heun_5", ODE(5)), ("heun_18", ODE(18)), ("euler_ablation_5", ODE(5, order=1))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_ode_samplers(key: str, sampler: ODE, parity_folder: Path, parity: Parity) -> None:
    stored = parity("sampler/edm_sampler_edm-ddpmpp-uncond")
    latents = stored["latents"]
    images = sampler(model(parity_folder, "edm-ddpmpp-uncond"), SCHEDULE, Stored(latents), latents.shape[1:])
    assert difference(images, stored[key]) <= 1e-5


def test_the_stochastic_sampler(parity_folder: Path, parity: Parity) -> None:
    """The reference draws noise at every step; ours only in [S_min, S_max], where it is used."""
    stored = parity("sampler/edm_sampler_edm-ddpmpp-uncond")
    sampler = ODE(6, churn=10, churn_low=0.05, churn_high=50, churn_noise=1.003)
    grid = karras_grid(6).flip(0).tolist()
    used = [noise for s, noise in zip(grid, stored["heun_churn_6_noise"], strict=True) if 0.05 <= s <= 50]
    noise = Stored(stored["latents"], *used)
    images = sampler(model(parity_folder, "edm-ddpmpp-uncond"), SCHEDULE, noise, stored["latents"].shape[1:])
    assert not noise.blocks
    assert difference(images, stored["heun_churn_6"]) <= 1e-5


def test_one_seed_an_image(parity: Parity) -> None:
    stored = parity("sampler/edm_sampler_edm-ddpmpp-uncond")["stacked_seeds_0_7"]
    assert torch.equal(ImageNoise(range(8))(*stored.shape[1:]), stored)


def test_ects_generator(parity_folder: Path, parity: Parity) -> None:
    stored = parity("ect/ect_generator_edm-ddpmpp-uncond")
    denoiser = model(parity_folder, "edm-ddpmpp-uncond")
    for mid, key in (((), "one_step"), ((0.821,), "two_step")):
        noise = Stored(stored["latents"], stored["fresh_noise"])
        images = Multistep(mid)(denoiser, SCHEDULE, noise, stored["latents"].shape[1:])
        assert difference(images, stored[key]) <= 1e-5


def test_an_ect_snapshot_samples_as_its_own_generator(parity_folder: Path, parity: Parity) -> None:
    """With ECT's preconditioner, whose evaluation form has its boundary at 0.003."""
    stored, denoiser = parity("networks/ect_snapshot"), model(parity_folder, "ect_snapshot")
    for mid, key in (((), "gen_1step"), ((0.821,), "gen_2step")):
        noise = Stored(stored["gen_latents"], stored["gen_noise"])
        images = Multistep(mid)(denoiser, SCHEDULE, noise, denoiser.image_shape)
        assert difference(images, stored[key]) <= 1e-5
    assert denoiser.card.objective == "consistency"
    assert denoiser.card.mid_t == (0.821,)


@pytest.mark.parametrize("c", [0.0, 0.06])
@pytest.mark.parametrize(("stage", "room"), [(0, 1e-5), (3, 1e-4), (7, 5e-4)])
def test_ects_losses(c: float, stage: int, room: float, parity_folder: Path, parity: Parity) -> None:
    """`room` is the reference's own error in fp32: at late stages the two outputs nearly cancel."""
    stored = parity("ect/ect_cifar_loss_edm-ddpmpp-uncond")
    denoiser = model(parity_folder, "edm-ddpmpp-uncond")
    t = torch.exp(2.0 * stored["normal"].flatten() - 1.1)
    r = SigmoidGap(q=2, every_images=1).lower(t, stage)
    loss = Consistency(SCHEDULE, None, OneSample(), Huber(c), InverseGap())  # type: ignore[arg-type]
    losses = loss.at(
        denoiser, denoiser, Batch(stored["images"]), Times(t, r, torch.zeros_like(t)), stored["eps"]
    )
    torch.testing.assert_close(losses, stored[f"loss_c{c}_stage{stage}"], rtol=room, atol=0)
