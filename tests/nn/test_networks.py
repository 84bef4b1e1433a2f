"""The published networks: their parameters by name, and their numbers."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.core.types import Condition
from consistune.nn.presets import PRESETS, preset
from tests.support.recorded import assert_recorded, check_values, filled, inputs

TABLES = {
    "cifar10-ddpmpp-uncond": ("edm-cifar10-ddpmpp", {}),
    "cifar10-ddpmpp-cond": ("edm-cifar10-ddpmpp", {"num_classes": 10}),
    "cifar10-ddpmpp-uncond-ect": ("edm-cifar10-ddpmpp", {"augment_dim": 0}),
    "cifar10-ncsnpp-uncond": ("edm-cifar10-ncsnpp", {}),
    "cifar10-ncsnpp-cond": ("edm-cifar10-ncsnpp", {"num_classes": 10}),
    "ffhq64-ddpmpp-uncond": ("edm-ffhq64-ddpmpp", {}),
    "ffhq64-ncsnpp-uncond": ("edm-ffhq64-ncsnpp", {}),
    "imagenet64-adm-cond": ("edm-imagenet64-adm", {}),
    **{f"edm2-img64-{size}": (f"edm2-img64-{size}", {}) for size in ("xs", "s", "m", "l", "xl")},
}
CASES = (
    "song-ddpmpp/EDMPrecond",
    "song-ddpmpp/VPPrecond",
    "song-ddpmpp/VEPrecond",
    "song-ncsnpp/EDMPrecond",
    "song-skip-skip/EDMPrecond",
    "adm/EDMPrecond",
    "adm/iDDPMPrecond",
)


@pytest.fixture(scope="session")
def cases(shared: Path) -> dict[str, Any]:
    return check_values(shared)


def sizes(shape: str) -> list[int]:
    return [] if shape == "scalar" else [int(size) for size in shape.split("x")]


@pytest.mark.parametrize("table", TABLES)
def test_every_parameter_and_buffer_is_the_published_one(shared: Path, table: str) -> None:
    with (shared / "spec" / f"params-{table}.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    expected = {(row["kind"], row["name"]): sizes(row["shape"]) for row in rows}
    name, options = TABLES[table]
    with torch.device("meta"):
        model = preset(name, **options)
    given = {("param", name): list(p.shape) for name, p in model.named_parameters()}
    buffers = {("buffer", name): list(b.shape) for name, b in model.named_buffers()}
    assert given | buffers == expected
    # Whatever zips two lists of parameters (an average of weights does) relies on the order too.
    assert [name for _, name in given] == [row["name"] for row in rows if row["kind"] == "param"]
    assert set(model.state_dict()) == {row["name"] for row in rows}


def test_every_preset_is_compared_with_a_table_or_is_one_that_is() -> None:
    assert {name for name, _ in TABLES.values()} | {"cm-imagenet64-adm"} == set(PRESETS)


@pytest.mark.parametrize("name", CASES)
def test_networks_give_the_published_numbers(cases: dict[str, Any], name: str) -> None:
    case, given = cases[name], inputs()
    x, sigma, labels = given["x"], given["sigma"], given["condition"]
    model = filled(case)
    # iDDPM's table is a recursion of a thousand fp32 steps: its end depends on the sine's last digit.
    assert model.sigma_min == case["sigma_min"]
    assert model.sigma_max == pytest.approx(float(case["sigma_max"]), rel=1e-6)
    scalings = model.scalings(sigma)
    assert torch.allclose(scalings.c_noise, torch.tensor(case["noise_labels"]), rtol=1e-6, atol=0)
    with torch.no_grad():
        one_hot = torch.nn.functional.one_hot(labels, 5).float()
        raw = model.network(scalings.c_in[:, None, None, None] * x, scalings.c_noise, one_hot)
        assert_recorded(raw, case["F_labels"])
        assert_recorded(model(x, sigma, labels), case["D_labels"])
        assert_recorded(model(x, sigma, one_hot), case["D_labels"])
        assert_recorded(model(x, sigma), case["D_nolabels"])
        assert_recorded(
            model(x, sigma, Condition(labels, augment=given["augment_labels"])), case["D_labels_aug"]
        )


def edm2_loss(cases: dict[str, Any]) -> Tensor:
    """EDM2's loss at the recorded seed, in evaluation mode: (weight/e^u)(D − x)² + u."""
    model, given = filled(cases["edm2/Precond"]), inputs()
    torch.manual_seed(0)
    sigma = (torch.randn(3, 1, 1, 1) * 1.6 - 0.8).exp()
    noise = torch.randn_like(given["x"]) * sigma
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    denoised = model(given["x"] + noise, sigma, given["condition"])
    u = model.log_variance(sigma)
    return weight / u.exp() * (denoised - given["x"]).square() + u


def test_edm2_gives_the_published_numbers(cases: dict[str, Any]) -> None:
    case, given = cases["edm2/Precond"], inputs()
    model = filled(case)
    with torch.no_grad():
        assert_recorded(model(given["x"], given["sigma"], given["condition"]), case["D_labels"])
        assert_recorded(model(given["x"], given["sigma"]), case["D_nolabels"])
        u = model.log_variance(given["sigma"])
        assert u.shape == (3, 1, 1, 1)
        assert torch.allclose(u.flatten(), torch.tensor(case["logvar"]), rtol=1e-5)
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
        for buffer in model.buffers():
            buffer.copy_(buffer.half().float())
        rounded = model(given["x"], given["sigma"], given["condition"])
        assert_recorded(rounded, case["D_labels_params_fp16_rounded_then_fp32"])


def test_edm2_normalises_its_weights_in_training(cases: dict[str, Any]) -> None:
    case, given = cases["edm2/Precond"], inputs()
    model = filled(case).train()
    weight = model.network.enc["8x8_block0"].conv_res0.weight
    first = model(given["x"], given["sigma"], given["condition"])
    assert_recorded(first, case["D_labels_train_mode_first_call"])
    assert_recorded(weight, case["weight_after_forced_wn_unet.enc.8x8_block0.conv_res0"])
    second = model(given["x"], given["sigma"], given["condition"])
    assert_recorded(second, case["D_labels_train_mode_second_call"])


def test_edm2_loss_at_a_seed(cases: dict[str, Any]) -> None:
    assert_recorded(edm2_loss(cases), cases["edm2/Precond"]["EDM2Loss_seed0_Pmean-0.8_Pstd1.6"])


def test_ect_has_two_forms(cases: dict[str, Any]) -> None:
    case, given = cases["ecm/ECMPrecond"], inputs()
    x, sigma, labels = given["x"], given["sigma"], given["condition"]
    model = filled(case)
    assert model.sigma_min == case["sigma_min"]
    with torch.no_grad():
        assert_recorded(model(x, sigma, labels), case["D_labels_eval"])
        assert_recorded(model(80 * x, 80.0, labels), case["one_step_from_80x"])
        assert_recorded(model.train()(x, sigma, labels), case["D_labels_train"])
