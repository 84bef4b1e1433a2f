"""Genuine files give the published implementations' numbers: networks, samplers, ECT's losses.

Fixtures: ../shared/parity/README.md, which also says how exact the references themselves are.
"""

import json
import re
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
from consistune.core.times import SigmoidGap
from consistune.core.types import Batch, Condition, Times
from consistune.interop.reading import read_checkpoint
from consistune.nn.edm2 import EDM2Precond, EDM2UNet
from consistune.nn.precond import CMPrecond, EDMPrecond, Preconditioned
from tests.support.noise import Stored
from tests.support.toy import entries, fixtures, keys, named

Parity = Callable[[str], dict[str, Tensor]]
SCHEDULE = EDM()
CLASS, AUGMENT = ("class_labels",), ("augment_labels",)
"""The labels of a fixture, where it has them."""


def networks(key: str) -> list[str]:
    """The networks whose fixture holds such an array; the key itself where none does, as in `entries`."""
    found = [fixture for fixture in fixtures("networks/*") if key in keys(fixture)]
    return [fixture.removeprefix("networks/") for fixture in found] or [key]


def of_fixtures(paths: str, pattern: str) -> list[tuple[str, str]]:
    """Every fixture with each of its entries."""
    return [(fixture, entry) for fixture in fixtures(paths) for entry in entries(fixture, pattern)]


NAMES = networks("D_x")
SAMPLER, LOSS, GENERATOR = "sampler/edm_sampler_", "ect/ect_cifar_loss_", "ect/ect_generator_"
"""Fixtures of a network; its name follows."""


@cache
def model(parity_folder: Path, name: str) -> Preconditioned:
    return consistune.load(parity_folder / "networks" / f"{name}.pkl").requires_grad_(False)


def labels(
    stored: dict[str, Tensor],
    kinds: tuple[str, ...] = CLASS + AUGMENT,
    rows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Condition:
    """The first rows of the stored labels of these kinds; none where the fixture has none."""
    label, augment = (
        stored[kind][:rows].to(dtype) if kind in kinds and kind in stored else None
        for kind in CLASS + AUGMENT
    )
    return Condition(label, augment=augment)


def forms(stored: dict[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """What is stored of D, and the labels that it was given.

    The first set of networks leaves augmentation out of D_x, the second puts it in.
    """
    if "D_x_augmented" in stored:
        return {"D_x": CLASS, "D_x_augmented": CLASS + AUGMENT, "D_x_nolabel": (), "D_x_noaug": CLASS}
    return {"D_x": CLASS + AUGMENT, "D_x_nolabel": AUGMENT, "D_x_noaug": CLASS}


def difference(value: Tensor, reference: Tensor) -> float:
    """max |difference| / max |reference|."""
    assert value.shape == reference.shape
    return float((value.double() - reference.double()).abs().max() / reference.double().abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_denoiser_is_the_published_one(name: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(f"networks/{name}"), model(parity_folder, name)
    x, sigma = stored["x"], stored["sigma"]
    for key, kinds in forms(stored).items():
        if key in stored:
            n = len(stored[key])
            found = denoiser(x[:n], sigma[:n], labels(stored, kinds, n))
            assert difference(found, stored[key]) <= 1e-5, key


@pytest.mark.parametrize("name", networks("D_x_f64"))
def test_the_denoiser_in_float64(name: str, parity_folder: Path, parity: Parity) -> None:
    """EDM's attention takes its softmax in float32 whatever the network's dtype, ours in the network's."""
    stored = parity(f"networks/{name}")
    denoiser = consistune.load(parity_folder / "networks" / f"{name}.pkl").requires_grad_(False).double()
    room = 1e-12 if isinstance(denoiser.network, EDM2UNet) else 1e-8
    x, sigma = stored["x"].double(), stored["sigma"].double()
    given = lambda kinds, n: labels(stored, kinds, n, torch.float64)
    wide = {key.removesuffix("_f64"): value for key, value in stored.items() if key.endswith("_f64")}
    checks = {
        key: denoiser(x[:n], sigma[:n], given(kinds, n))
        for key, kinds in forms(stored).items()
        if key in wide and (n := len(wide[key]))
    }
    if isinstance(denoiser, EDM2Precond) and "logvar" in wide:
        checks["logvar"] = denoiser.log_variance(sigma)
    if "D_x_trainmode_nodropout" in wide:
        checks["D_x_trainmode_nodropout"] = without_dropout(denoiser)(x, sigma, given(CLASS + AUGMENT, None))
    assert wide.keys() == checks.keys()
    for key, found in checks.items():
        assert difference(found, wide[key]) <= room, key


def without_dropout(denoiser: Preconditioned) -> Preconditioned:
    """In training mode, where ECT's boundary is not shifted."""
    for module in denoiser.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return denoiser


def test_the_scalings_of_consistency_models(parity: Parity) -> None:
    """c_skip, c_out and c_in with the boundary at 0.002 and σ_data 0.5 unless it says others, and EDM's."""
    stored = parity("openai_cm/openai_cm")
    options = {name: float(stored[name]) for name in ("sigma_data", "sigma_min") if name in stored}
    for kind, name in ((CMPrecond, "boundary"), (EDMPrecond, "edm")):
        scalings = kind(torch.nn.Identity(), **options).scalings(stored["sigma"].double())
        for part in ("c_skip", "c_out", "c_in"):
            key = f"{name}_{part}"
            assert difference(getattr(scalings, part), stored[key]) <= 1e-6, key


@pytest.mark.parametrize("name", networks("logvar"))
def test_the_learned_log_variance(name: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(f"networks/{name}"), model(parity_folder, name)
    assert isinstance(denoiser, EDM2Precond)
    assert difference(denoiser.log_variance(stored["sigma"]), stored["logvar"]) <= 1e-5


@pytest.mark.parametrize("name", networks("round_sigma"))
def test_rounded_noise_levels(name: str, parity_folder: Path, parity: Parity) -> None:
    stored = parity(f"networks/{name}")
    rounded = model(parity_folder, name).round_sigma(stored["sigma"])
    torch.testing.assert_close(rounded, stored["round_sigma"].to(rounded), rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", networks("D_x_trainmode_nodropout"))
def test_the_training_form_without_a_shifted_boundary(name: str, parity_folder: Path, parity: Parity) -> None:
    """ECT's, which its evaluation shifts."""
    stored = parity(f"networks/{name}")
    ect = without_dropout(consistune.load(parity_folder / "networks" / f"{name}.pkl"))
    x, sigma, given = stored["x"], stored["sigma"], labels(stored)
    assert difference(ect(x, sigma, given).detach(), stored["D_x_trainmode_nodropout"]) <= 1e-5
    assert difference(ect.eval()(x, sigma, given).detach(), stored["D_x"]) <= 1e-5


@pytest.mark.parametrize("name", networks("D_x_train"))
def test_the_training_form_with_normalised_weights(name: str, parity_folder: Path, parity: Parity) -> None:
    """EDM2's weights, which one training pass normalises in place."""
    stored = parity(f"networks/{name}")
    edm2 = consistune.load(parity_folder / "networks" / f"{name}.pkl").train()
    tensors = edm2.state_dict()
    first = tensors[named(tensors, r"unet\.enc\.\d+x\d+_conv\.weight")[0][0]]
    torch.testing.assert_close(first, stored["first_conv_weight_before"].float(), rtol=0, atol=0)
    trained = edm2(stored["x"], stored["sigma"], labels(stored)).detach()
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


def published(denoiser: Preconditioned, steps: int, **options: float) -> ODE:
    """EDM's sampler with its own range of noise levels, within the network's."""
    low, high = max(0.002, denoiser.sigma_min), min(80.0, denoiser.sigma_max)
    return ODE(steps, low=low, high=high, **options)  # type: ignore[arg-type]


def drawn(sampler: ODE, denoiser: Preconditioned, noise: Stored, stored: dict[str, Tensor]) -> Tensor:
    """A sampler's images, of the stored labels."""
    return sampler(denoiser, SCHEDULE, noise, denoiser.image_shape, labels(stored).label)


ORDERS = {"heun": 2, "euler_ablation": 1}


@pytest.mark.parametrize(
    ("fixture", "key"), of_fixtures(f"{SAMPLER}*", rf"((?:{'|'.join(ORDERS)})_\d+)"), ids=str
)
def test_the_ode_samplers(fixture: str, key: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(fixture), model(parity_folder, fixture.removeprefix(SAMPLER))
    method, steps = key.rsplit("_", 1)
    sampler = published(denoiser, int(steps), order=ORDERS[method])
    assert difference(drawn(sampler, denoiser, Stored(stored["latents"]), stored), stored[key]) <= 1e-5


@pytest.mark.parametrize(("fixture", "steps"), of_fixtures(f"{SAMPLER}*", r"heun_churn_(\d+)"), ids=str)
def test_the_stochastic_sampler(fixture: str, steps: str, parity_folder: Path, parity: Parity) -> None:
    """The reference draws noise at every step; ours only in [S_min, S_max], where it is used."""
    stored, denoiser = parity(fixture), model(parity_folder, fixture.removeprefix(SAMPLER))
    sampler = published(denoiser, int(steps), churn=10, churn_low=0.05, churn_high=50, churn_noise=1.003)
    levels = zip(sampler.times(SCHEDULE), stored[f"heun_churn_{steps}_noise"], strict=True)
    noise = Stored(stored["latents"], *(block for s, block in levels if 0.05 <= s <= 50))
    images = drawn(sampler, denoiser, noise, stored)
    assert not noise.blocks
    assert difference(images, stored[f"heun_churn_{steps}"]) <= 1e-5


@pytest.mark.parametrize("fixture", fixtures(f"{SAMPLER}*"))
def test_one_seed_an_image(fixture: str, parity: Parity) -> None:
    arrays = parity(fixture)
    for match in named(arrays, r"stacked_seeds_(\d+)_(\d+)"):
        expected, (first, last) = arrays[match[0]], map(int, match.groups())
        assert torch.equal(ImageNoise(range(first, last + 1))(*expected.shape[1:]), expected)


ONE, TWO = Multistep(), Multistep((0.821,))
MULTISTEP = {"one": ONE, "two": TWO, "1": ONE, "2": TWO}


@pytest.mark.parametrize("fixture", fixtures(f"{GENERATOR}*"))
def test_ects_generator(fixture: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(fixture), model(parity_folder, fixture.removeprefix(GENERATOR))
    for match in named(stored, "(one|two)_step"):
        noise = Stored(stored["latents"], stored["fresh_noise"])
        sampler = MULTISTEP[match[1]]
        images = sampler(denoiser, SCHEDULE, noise, denoiser.image_shape, labels(stored).label)
        assert difference(images, stored[match[0]]) <= 1e-5


@pytest.mark.parametrize("name", networks("gen_latents"))
def test_an_ect_snapshot_samples_as_its_own_generator(name: str, parity_folder: Path, parity: Parity) -> None:
    """With ECT's preconditioner, whose evaluation form has its boundary at 0.003."""
    stored, denoiser = parity(f"networks/{name}"), model(parity_folder, name)
    given = labels(stored, CLASS, len(stored["gen_latents"])).label
    for match in named(stored, r"gen_([12])step"):
        noise = Stored(stored["gen_latents"], stored["gen_noise"])
        images = MULTISTEP[match[1]](denoiser, SCHEDULE, noise, denoiser.image_shape, given)
        assert difference(images, stored[match[0]]) <= 1e-5
    assert denoiser.card.objective == "consistency"
    assert denoiser.card.mid_t == (0.821,)


def float32_room(stage: int) -> float:
    """The relative error of a loss in fp32: each stage halves the difference of two outputs, not its error.

    Ours, of 6 other draws at stages 0, 3 and 7: at most 1e-6, 2e-5 and 8e-4.
    """
    return 2e-5 * 2.0**stage


@pytest.mark.parametrize(("fixture", "key"), of_fixtures(f"{LOSS}*", r"(loss_c[\d.e-]+_stage\d+)"), ids=str)
def test_ects_losses(fixture: str, key: str, parity_folder: Path, parity: Parity) -> None:
    stored, denoiser = parity(fixture), model(parity_folder, fixture.removeprefix(LOSS))
    c, stage = re.fullmatch(r"loss_c(.+)_stage(\d+)", key).groups()  # type: ignore[union-attr]
    t = torch.exp(2.0 * stored["normal"].flatten() - 1.1)
    r = SigmoidGap(q=2, every_images=1).lower(t, int(stage))
    loss = Consistency(SCHEDULE, None, OneSample(), Huber(float(c)), InverseGap())  # type: ignore[arg-type]
    batch = Batch(stored["images"], labels(stored).label)
    losses = loss.at(denoiser, denoiser, batch, Times(t, r, torch.zeros_like(t)), stored["eps"])
    torch.testing.assert_close(losses, stored[key], rtol=float32_room(int(stage)), atol=0)
