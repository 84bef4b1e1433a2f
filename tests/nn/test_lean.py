"""Activations that keep little: the same numbers and gradients, fewer bytes until the backward pass."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

from sct.nn.blocks import BlockStyle, ResidualBlock, activated
from sct.nn.layers import GroupNorm, Init
from sct.nn.lean import Dropout, clipped, recomputed


def kept_bytes(run) -> int:
    """Bytes that autograd keeps for the backward pass of run(), each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()
        del result
    return sum(storages.values())


@pytest.mark.parametrize("modulated", [False, True])
def test_the_recomputed_activation_is_the_plain_one_with_its_gradients(generator, modulated) -> None:
    norm = GroupNorm(16, 1e-5)
    with torch.no_grad():
        norm.weight.add_(torch.randn(16, generator=generator))
        norm.bias.add_(torch.randn(16, generator=generator))
    x = torch.randn(2, 16, 4, 4, generator=generator, requires_grad=True)
    scale, shift = (torch.randn(2, 16, 1, 1, generator=generator, requires_grad=True) for _ in range(2))
    inputs = (x, norm.weight, norm.bias, *((scale, shift) if modulated else ()))
    up = torch.randn(2, 16, 4, 4, generator=generator)

    h = group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    plain = silu(h * (1 + scale) + shift if modulated else h)
    ours = activated(norm, x, None, *((scale, shift) if modulated else ()))
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    for given, expected in zip(
        torch.autograd.grad(ours, inputs, up), torch.autograd.grad(plain, inputs, up), strict=True
    ):
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_what_is_recomputed_keeps_its_inputs_alone(generator) -> None:
    x = torch.randn(1000, generator=generator, requires_grad=True)
    plain = kept_bytes(lambda: (x.sin().exp() * x.cos()).sigmoid())
    ours = kept_bytes(lambda: recomputed(lambda x: (x.sin().exp() * x.cos()).sigmoid(), x * 1))
    assert plain >= 4 * x.nbytes
    assert ours == x.nbytes


def test_a_block_keeps_four_and_a_quarter_of_its_input(generator) -> None:
    """fp32: x, the first activation, h, the second with dropout, and a byte an element of the mask."""
    init = Init("xavier_uniform")
    style = BlockStyle(8, 0.5, init, init, init, adaptive_scale=False, heads=1)
    block = ResidualBlock(64, 64, style).train()
    x = torch.randn(4, 64, 16, 16, generator=generator)
    embedding = torch.randn(4, 8, generator=generator)
    assert 4.25 * x.nbytes <= kept_bytes(lambda: block(x, embedding)) < 4.3 * x.nbytes


def test_clipping_keeps_its_result_and_stops_the_gradient_beyond_the_limit(generator) -> None:
    x = torch.randn(100, generator=generator, requires_grad=True)
    y = clipped(x, 0.7)
    assert torch.equal(y, x.clamp(-0.7, 0.7))
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    expected = torch.autograd.grad(x.clamp(-0.7, 0.7).square().sum(), x)[0]
    assert torch.equal(gradient, expected)
    assert kept_bytes(lambda: clipped(x, 0.7).square()) == x.nbytes


@pytest.mark.parametrize("p", [0.13, 0.5, 0.9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dropout_drops_a_share_p_and_keeps_the_mean(p, layout) -> None:
    torch.manual_seed(0)
    x = torch.ones(8, 32, 32, 32).contiguous(memory_format=layout)
    y = Dropout(p)(x)
    assert y.is_contiguous(memory_format=layout)
    dropped = float((y == 0).double().mean())
    deviation = math.sqrt(p * (1 - p) / x.numel())
    assert abs(dropped - p) < 5 * deviation + 2**-17
    values = y.unique()
    assert len(values) == 2
    assert values[0] == 0
    assert float(values[1]) == pytest.approx(1 / (1 - p), rel=2**-16 / (1 - p))
    # Neighbours fall independently: no bit serves two elements.
    both = float(((y == 0)[:, 1:] & (y == 0)[:, :-1]).double().mean())
    assert both == pytest.approx(p * p, abs=0.01)


def test_dropout_keeps_a_byte_an_element_and_passes_the_gradient_through_its_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, requires_grad=True)
    layer = Dropout(0.3)
    assert kept_bytes(lambda: layer(x)) == x.numel()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y / x).detach())


def test_dropout_draws_the_same_mask_in_every_memory_format() -> None:
    x = torch.randn(2, 5, 3, 4)
    torch.manual_seed(0)
    contiguous = Dropout(0.5)(x)
    torch.manual_seed(0)
    last = Dropout(0.5)(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(contiguous, last)


def test_dropout_at_its_ends_and_in_evaluation_draws_nothing() -> None:
    x = torch.randn(4, 4)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)
