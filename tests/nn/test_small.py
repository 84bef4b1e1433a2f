"""The networks for a CPU: every weight learns, labels and noise levels matter, nothing leaks between rows."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import consistune
from consistune.nn import store
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import PatchUNet, ResidualMLP
from consistune.nn.transformer import DiT, TransformerBlock

MADE: dict[str, Any] = {
    "mlp": lambda: ResidualMLP((3, 8, 8), num_classes=4, width=16, blocks=2),
    "patch-unet": lambda: PatchUNet((3, 16, 24), 4, patch=4, model_channels=8, num_blocks=1),
    "three levels": lambda: PatchUNet((3, 16, 16), 4, patch=2, model_channels=8, channel_mult=(1, 2, 3)),
    "dit": lambda: DiT((3, 16, 24), 4, patch=4, width=12, blocks=2),
}


@pytest.fixture(params=MADE)
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(3)
    network: nn.Module = MADE[request.param]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def arguments(network: nn.Module, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = torch.randn(rows, *network.image_shape)  # type: ignore[misc]
    return x, torch.linspace(-1.5, 1.1, rows), torch.eye(4)[torch.arange(rows) % 4]


def test_every_parameter_gets_a_gradient(network: nn.Module) -> None:
    network(*arguments(network)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_noise_level_and_label_change_the_result(network: nn.Module) -> None:
    x, c_noise, one_hot = arguments(network)
    with torch.no_grad():
        result = network(x, c_noise, one_hot)
        for other in (network(x, c_noise + 0.3, one_hot), network(x, c_noise, one_hot.flip(0))):
            assert ((other - result).flatten(1).abs().amax(1) > 1e-3).all()
        assert not torch.equal(network(x, c_noise, None), result)


def test_rows_do_not_touch_each_other(network: nn.Module) -> None:
    x, c_noise, one_hot = arguments(network)
    with torch.no_grad():
        result = network(x, c_noise, one_hot)
        for row in range(4):
            one = slice(row, row + 1)
            alone = network(x[one], c_noise[one], one_hot[one])
            assert torch.allclose(alone, result[one], atol=1e-5 * float(result.abs().max()))


def test_every_pixel_reaches_every_other(network: nn.Module) -> None:
    """The receptive field is the whole image: one corner's result depends on the opposite corner."""
    x, c_noise, one_hot = arguments(network, 1)
    x.requires_grad_()
    network(x, c_noise, one_hot)[..., 0, 0].sum().backward()
    assert x.grad is not None
    assert float(x.grad[..., -1, -1].abs().sum()) > 0


@pytest.mark.parametrize("kind", MADE)
def test_it_begins_as_zero_and_comes_back_from_disk(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EDMPrecond(MADE[kind]())
    x, sigma, labels = torch.randn(4, *model.image_shape), torch.logspace(-2, 2, 4), torch.arange(4)
    expected = x * (0.25 / (sigma.square() + 0.25))[:, None, None, None]  # D = c_skip·x where F = 0
    assert torch.allclose(model(x, sigma, labels), expected)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    store.save(model, tmp_path / "model")
    back = consistune.load(tmp_path / "model")
    assert store.describe(back) == store.describe(model)
    assert torch.equal(back(x, sigma, labels), model.eval()(x, sigma, labels))


@pytest.mark.parametrize(("precision", "room"), [("bf16", 0.02), ("fp16", 0.003)])
def test_half_precision_is_near(precision: Any, room: float) -> None:
    torch.manual_seed(2)
    model = EDMPrecond(PatchUNet((3, 16, 16), 4, model_channels=32)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    x, sigma, labels = torch.randn(4, 3, 16, 16), torch.logspace(-2, 2, 4), torch.arange(4)
    with torch.no_grad():
        expected = model(x, sigma, labels)
        model.precision = precision
        given = model(x, sigma, labels)
    assert given.dtype == torch.float32
    error = float((given - expected).norm() / expected.norm())
    assert 0 < error < room


def test_images_that_do_not_fit_the_patches_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        PatchUNet((1, 28, 28))


@pytest.mark.parametrize("kind", ["mlp", "patch-unet", "dit"])
def test_the_shapes_of_a_stored_model_are_known_without_a_compiler(kind: str) -> None:
    """Arithmetic on the meta device imports torch's compiler, which costs a cold start over a second."""
    network = {"kind": kind, "image_shape": [4, 8, 8], "num_classes": 3}
    code = (
        "import sys; from consistune.nn import store; "
        f"store.shapes({{'network': {network}, 'precond': {{'kind': 'edm'}}}}); "
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_transformers_block_is_that_of_torchs_attention(generator) -> None:
    """Against nn.MultiheadAttention, the norms and the modulation written out."""
    block, embedding = TransformerBlock(12, 3, 2, 8, 0.0).eval(), torch.randn(2, 8, generator=generator)
    h, theirs = torch.randn(2, 5, 12, generator=generator), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        block.modulation.weight.normal_(generator=generator)
        for own, other in ((block.qkv.weight, theirs.in_proj_weight), (block.qkv.bias, theirs.in_proj_bias)):
            other.copy_(own)
        theirs.out_proj.load_state_dict(block.proj.state_dict())
        parts = block.modulation(embedding)[:, None].chunk(6, dim=2)
        (scale, shift, gate), (scale_mlp, shift_mlp, gate_mlp) = parts[:3], parts[3:]
        into = nn.functional.layer_norm(h, (12,), eps=1e-6) * (1 + scale) + shift
        expected = h + gate * theirs(into, into, into, need_weights=False)[0]
        into = nn.functional.layer_norm(expected, (12,), eps=1e-6) * (1 + scale_mlp) + shift_mlp
        hidden = nn.functional.gelu(block.inner(into), approximate="tanh")
        torch.testing.assert_close(block(h, embedding), expected + gate_mlp * block.outer(hidden))


def test_without_places_a_transformer_does_not_know_the_order_of_its_patches() -> None:
    torch.manual_seed(0)
    network = DiT((2, 4, 4), width=12, blocks=2).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, c_noise, order = torch.randn(1, 2, 4, 4), torch.zeros(1), torch.randperm(16)

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[..., order].view_as(x)

    with torch.no_grad():
        assert not torch.allclose(network(turned(x), c_noise), turned(network(x, c_noise)), atol=1e-2)
        network.place.zero_()
        torch.testing.assert_close(network(turned(x), c_noise), turned(network(x, c_noise)))


def test_patches_and_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 3"):
        DiT((1, 8, 8), patch=3)
    with pytest.raises(ValueError, match="no multiple of 5 heads"):
        DiT((1, 8, 8), width=12, heads=5)
