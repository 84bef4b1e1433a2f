"""A model with other labels begins as the one it came from."""

import math

import pytest
import torch
from torch import Tensor

from consistune.core.types import Condition
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.adapt import adapt
from consistune.nn.precond import Preconditioned

SMALL = {"image_shape": [3, 8, 8], "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
NETWORKS = {
    "mlp": {"kind": "mlp", "image_shape": [1, 8, 8], "width": 16, "blocks": 2},
    "dit": {"kind": "dit", "image_shape": [3, 8, 8], "patch": 2, "width": 12, "blocks": 2},
    "song": {"kind": "song", **SMALL, "attn_resolutions": [4]},
    "ncsnpp": {
        "kind": "song",
        **SMALL,
        "attn_resolutions": [4],
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "adm": {"kind": "adm", **SMALL, "attn_resolutions": [4]},
    "edm2": {"kind": "edm2", **SMALL, "attn_resolutions": [4], "channels_per_head": 8},
}


def teacher(kind: str, classes: int, augment: int = 0) -> Preconditioned:
    """A network whose every parameter is random, so that every branch matters."""
    options = {**NETWORKS[kind], "num_classes": classes, **({"augment_dim": augment} if augment else {})}
    precond = {"kind": "edm2" if kind == "edm2" else "edm"}
    torch.manual_seed(1)
    model = store.build({"network": options, "precond": precond}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim else 1
            parameter.copy_(torch.randn_like(parameter) / (1 + math.sqrt(fan)))
    return model


def inputs(model: Preconditioned) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, *model.image_shape, generator=generator), torch.tensor([0.01, 0.3, 1.0, 5.0, 80.0])


def same(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 2e-6 * float(b.abs().max())


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_second_time_keeps_the_teacher_and_is_learned(kind: str) -> None:
    model = teacher(kind, 4)
    adapted = adapt(model, second_time=True).model
    x, sigma = inputs(model)
    labels = torch.tensor([0, 1, 2, 3, 0])
    for s in (None, sigma, sigma / 3, torch.zeros(5)):
        assert torch.equal(adapted(x, sigma, labels, s), model(x, sigma, labels))
    optimizer = torch.optim.SGD(adapted.parameters(), lr=0.1)
    for _ in range(2):  # EDM2's new weights move in the second step: their gain begins with zero
        optimizer.zero_grad()
        adapted(x, sigma, labels, sigma / 3).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        ends = [adapted(x[:2], sigma[:2], labels[:2], s) for s in (sigma[:2] / 3, torch.zeros(2))]
    assert not torch.equal(*ends)
    assert adapt(adapted).model is adapted
    with pytest.raises(UserError, match="second time"):
        adapt(adapted, second_time=False)
    with pytest.raises(ValueError, match="second time"):
        model(x, sigma, labels, sigma)


def test_the_second_time_is_zero_at_the_first_and_finite_at_zero() -> None:
    model = teacher("mlp", 0)
    sigma = torch.tensor([0.002, 0.5, 80.0], dtype=torch.float64)
    assert torch.equal(model.gap(sigma, sigma), torch.zeros(3, dtype=torch.float64))
    whole = model.gap(sigma, 0 * sigma)
    assert torch.equal(whole, whole.sort().values)
    assert whole[0] > 0.08
    assert whole[-1] < 2.7
    far = model.gap(sigma[2:], sigma[1:2]) - (sigma[2:].log() - sigma[1:2].log()) / 4
    assert far.abs().max() < 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("before", "after"), [(0, 4), (4, 0), (4, 7)])
@torch.no_grad()
def test_the_first_output_is_the_teachers_without_a_label(kind: str, before: int, after: int) -> None:
    model = teacher(kind, before)
    found = adapt(model, num_classes=after)
    x, sigma = inputs(model)
    expected = model(x, sigma)
    assert found.model.num_classes == after
    for labels in [None, torch.arange(5) % after] if after else [None]:
        assert same(found.model(x, sigma, labels), expected)
    assert bool(found.new) == bool(after)
    assert bool(found.dropped) == bool(before)


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_new_learns(kind: str) -> None:
    """The new class embedding receives a gradient from the first step, and then changes the output."""
    model = adapt(teacher(kind, 0), num_classes=4).model.train()
    x, sigma = inputs(model)
    labels = torch.arange(5) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x, sigma, labels) - labels.view(-1, 1, 1, 1)).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        apart = (model(x, sigma, labels) - model(x, sigma, (labels + 1) % 4)).abs().max()
    assert float(apart) > 1e-5


@torch.no_grad()
def test_edm2s_first_training_pass_does_not_move_the_output_either() -> None:
    """Forced weight normalisation rescales the new directions; their share is what begins at 0."""
    model = teacher("edm2", 0)
    student = adapt(model, num_classes=4).model
    x, sigma = inputs(model)
    labels = torch.arange(5) % 4
    with torch.enable_grad():
        model.train()(x, sigma)
        student.train()(x, sigma, labels)
    assert same(student.eval()(x, sigma, labels), model.eval()(x, sigma))


@pytest.mark.parametrize("kind", ["song", "adm"])
@torch.no_grad()
def test_augmentation_labels_are_dropped_and_added(kind: str) -> None:
    model = teacher(kind, 4, augment=9)
    x, sigma = inputs(model)
    labels = torch.arange(5) % 4
    without = adapt(model, num_classes=4, augment_dim=0)
    assert same(without.model(x, sigma, labels), model(x, sigma, labels))
    assert without.dropped == ("model.map_augment.weight",)
    again = adapt(without.model, num_classes=4, augment_dim=9)
    assert again.new == ("model.map_augment.weight",)
    assert same(again.model(x, sigma, Condition(labels, augment=torch.randn(5, 9))), model(x, sigma, labels))


def test_the_same_labels_are_the_same_model() -> None:
    model = teacher("song", 4)
    assert adapt(model, num_classes=4).model is model


def test_a_network_without_augmentation_labels_says_so() -> None:
    with pytest.raises(UserError, match="augment_dim: EDM2UNet has no such option"):
        adapt(teacher("edm2", 0), augment_dim=9)


def test_a_transferred_model_is_stored_and_read(tmp_path) -> None:
    model = adapt(teacher("edm2", 0), num_classes=4).model
    again = store.load(store.save(model, tmp_path / "model"))
    x, sigma = inputs(model)
    with torch.no_grad():
        assert torch.equal(again(x, sigma), model.eval()(x, sigma))
