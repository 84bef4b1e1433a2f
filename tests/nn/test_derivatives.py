"""The forward derivative of every network, by `torch.func.jvp`, against finite differences in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.nn import store
from consistune.nn.lean import clipped
from consistune.nn.precond import Preconditioned

SMALL: dict[str, Any] = {"image_shape": (1, 8, 8), "dropout": 0.3}
UNET: dict[str, Any] = {**SMALL, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {**SMALL, "kind": "mlp", "num_classes": 3, "width": 16, "embedding": 8},
    "dit": {**SMALL, "kind": "dit", "num_classes": 3, "patch": 2, "width": 12, "blocks": 2, "embedding": 8},
    "patch-unet": {**UNET, "kind": "patch-unet", "num_classes": 3, "patch": 2, "embedding": 8},
    "ddpmpp": {**UNET, "kind": "song", "num_classes": 3, "attn_resolutions": (4,)},
    "ncsnpp": {
        **UNET,
        "kind": "song",
        "attn_resolutions": (8,),
        "embedding_type": "fourier",
        "fourier_scale": 0.5,
        "encoder_type": "residual",
        "decoder_type": "skip",
        "resample_filter": (1, 3, 3, 1),
    },
    "adm": {**SMALL, "kind": "adm", "model_channels": 64, "channel_mult": (1,), "num_blocks": 1},
    "edm2": {**UNET, "kind": "edm2", "num_classes": 3, "attn_resolutions": (4,), "channels_per_head": 8},
}
assert {network["kind"] for network in NETWORKS.values()} == set(store.NETWORKS) - {"module"}


def made(name: str, **options: Any) -> Preconditioned:
    """The network in its preconditioning, float64, in training mode, with no parameter at zero."""
    torch.manual_seed(0)
    network = {**NETWORKS[name], **options}
    model = store.build({"network": network, "precond": {"kind": "edm2" if name == "edm2" else "edm"}})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().train()


def point(model: Preconditioned) -> tuple[Tensor, ...]:
    """x, σ, and a direction for both."""
    x, along = torch.randn(2, 2, *model.image_shape, dtype=torch.float64)
    sigma, rate = torch.tensor([[0.3, 4.0], [0.5, -1.0]], dtype=torch.float64)
    return x, sigma, along, rate


@pytest.mark.parametrize(("grad", "second"), [(True, True), (False, False)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_forward_derivative_is_that_of_finite_differences(name, grad, second) -> None:
    """In training mode: the same dropout mask, EDM2's weights and clipped activations included."""
    options: dict[str, Any] = {"clip_act": 1.5} if name == "edm2" else {}
    model = made(name, **options, second_time=second)
    if hasattr(model.network, "checkpointing"):
        model.network.checkpointing = True
    labels = torch.tensor([0, 2]) if model.num_classes else None
    x, sigma, along, rate = point(model)
    s = sigma / 3 if second else None
    weights = [parameter.clone() for parameter in model.parameters()]

    def value(x: Tensor, sigma: Tensor) -> Tensor:
        torch.manual_seed(1)
        return model(x, sigma, labels, s)

    with torch.set_grad_enabled(grad):
        y, slope = torch.func.jvp(value, (x, sigma), (along, rate))
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    h = 1e-6
    with torch.no_grad():
        expected = (value(x + h * along, sigma + h * rate) - value(x - h * along, sigma - h * rate)) / (2 * h)
        torch.testing.assert_close(y, value(x, sigma), rtol=0, atol=1e-12)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))
    assert slope.abs().max() > 0.1


@pytest.mark.parametrize("name", ["ddpmpp", "edm2", "dit"])
def test_the_forward_derivative_in_float32(name) -> None:
    """torch has other attention kernels for float32, some of them without a forward derivative."""
    model = made(name).eval()
    x, sigma, along, rate = point(model)
    _, expected = torch.func.jvp(model, (x, sigma), (along, rate))
    inputs = [tensor.float() for tensor in (x, sigma, along, rate)]
    _, slope = torch.func.jvp(model.float(), tuple(inputs[:2]), tuple(inputs[2:]))
    torch.testing.assert_close(slope.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_clipped_activations_have_both_derivatives() -> None:
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0], requires_grad=True)
    inside = torch.tensor([0.0, 1.0, 1.0, 0.0])
    clipped(x, 1.0).sum().backward()
    assert torch.equal(x.grad, inside)
    _, slope = torch.func.jvp(lambda x: clipped(x, 1.0), (x.detach(),), (torch.ones(4),))
    assert torch.equal(slope, inside)
    assert torch.equal(torch.func.grad(lambda x: clipped(x, 1.0).sum())(x.detach()), inside)


@pytest.mark.parametrize("name", ["patch-unet", "edm2"])
def test_a_jacobian_without_gradients_is_that_with_gradients(name) -> None:
    """jacfwd maps a derivative over directions; without gradients the layers have their own formulas."""
    model = made(name).eval()
    x, sigma, *_ = point(model)

    def value(scale: Tensor) -> Tensor:
        return model(x * scale[0], sigma * scale[1])

    expected = torch.func.jacfwd(value)(torch.ones(2, dtype=torch.float64))
    with torch.no_grad():
        slopes = torch.func.jacfwd(value)(torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(slopes, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_a_derivative_along_weights_needs_gradients() -> None:
    model = made("patch-unet").eval()
    x, sigma, *_ = point(model)
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def value(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, weights, (x, sigma))

    _, slope = torch.func.jvp(value, (weights,), (weights,))
    assert slope.abs().max() > 0
    with torch.no_grad(), pytest.raises(NotImplementedError, match="enable_grad"):
        torch.func.jvp(value, (weights,), (weights,))
