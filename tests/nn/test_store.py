"""Model folders: what is saved comes back, and nothing else passes for one."""

import json
from pathlib import Path

import pytest
import torch

import consistune
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP


def make() -> EDMPrecond:
    torch.manual_seed(1)
    network = ResidualMLP((1, 4, 4), num_classes=3, width=8, blocks=2, dropout=0.3)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    model = EDMPrecond(network, sigma_data=0.7)
    model.card = ModelCard(class_names=("a", "b", "c"))
    return model.eval()


def test_a_saved_model_comes_back_the_same(tmp_path: Path) -> None:
    model = make()
    store.save(model, tmp_path / "model")
    back = consistune.load(tmp_path / "model")
    x, sigma, labels = torch.randn(5, 1, 4, 4), torch.logspace(-2, 2, 5), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(back(x, sigma, labels), model(x, sigma, labels))
    assert store.describe(back) == store.describe(model)
    assert not back.training
    assert not consistune.load(tmp_path).training  # a run's folder holds its model under model/


def test_saving_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    model = make()
    store.save(model, tmp_path / "model")
    with torch.no_grad():
        next(model.parameters()).fill_(2.0)
    store.save(model, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert float(next(consistune.load(tmp_path / "model").parameters()).detach().min()) == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "format 99"),
        ({"network": {"kind": "transformer"}}, "transformer"),
        ({"network": {"kind": "mlp", "colour": 3}}, "colour"),
        ({"precond": None}, "precond"),
        ({"network": {"kind": "mlp", "image_shape": [1, 4, 4], "width": 9}}, "do not fit"),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    store.save(make(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message):
        store.load(tmp_path / "model")


def test_torn_files_are_refused(tmp_path: Path) -> None:
    store.save(make(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        store.load(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        store.load(tmp_path / "model")


def test_edm_scalings_are_the_papers() -> None:
    model = EDMPrecond(ResidualMLP((1, 2, 2), width=4, blocks=1), sigma_data=0.5)
    sigma = torch.tensor([0.002, 0.3, 80.0], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = model.scalings(sigma)
    v = sigma**2 + 0.25
    assert torch.allclose(c_skip, 0.25 / v)
    assert torch.allclose(c_out, sigma * 0.5 / v.sqrt())
    assert torch.allclose(c_in, 1 / v.sqrt())
    assert torch.allclose(c_noise, sigma.log() / 4)
    # Unit variance of the network's input and of its target, for data of variance sigma_data².
    assert torch.allclose(c_in**2 * v, torch.ones(3, dtype=torch.float64))
    target_variance = ((1 - c_skip) ** 2 * 0.25 + c_skip**2 * sigma**2) / c_out**2
    assert torch.allclose(target_variance, torch.ones(3, dtype=torch.float64))


def test_at_sigma_zero_the_model_is_the_identity() -> None:
    model = make()
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(model(x, torch.zeros(2), torch.tensor([0, 1])), x)
