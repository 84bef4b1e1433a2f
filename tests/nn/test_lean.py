"""Activations that keep little: the same numbers and gradients, fewer bytes until the backward pass."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, silu

from consistune.nn.blocks import BlockStyle, ResidualBlock
from consistune.nn.layers import Init, attend, split_heads
from consistune.nn.lean import Dropout, NormInFormat, clipped, recomputed
from consistune.nn.magnitude import MPConv, mp_silu


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


def block(adaptive: bool = False, dropout: float = 0.5, width: int = 64) -> ResidualBlock:
    init = Init("xavier_uniform")
    style = BlockStyle(8, dropout, init, init, init, adaptive_scale=adaptive, heads=1)
    return ResidualBlock(64, width, style, attention=width != 64).train()


def plainly(block: ResidualBlock, x: Tensor, embedding: Tensor) -> Tensor:
    """The block without dropout, one operation after another, nothing computed again."""
    h = block.conv0(silu(block.norm0(x)))
    modulation = block.affine(embedding)[:, :, None, None]
    if block.adaptive_scale:
        scale, shift = modulation.chunk(2, dim=1)
        h = block.norm1(h) * (1 + scale) + shift
    else:
        h = block.norm1(h + modulation)
    x = (block.conv1(silu(h)) + (x if block.skip is None else block.skip(x))) * block.skip_scale
    if block.heads:
        q, k, v = split_heads(block.qkv(block.norm2(x)), block.heads)
        x = (block.proj(attend(q, k, v, x)) + x) * block.skip_scale
    return x


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("width", [64, 128])
def test_a_block_has_the_plain_ones_values_and_gradients(generator, adaptive, width) -> None:
    layer = block(adaptive, dropout=0.0, width=width)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 64, 8, 8, generator=generator, requires_grad=True)
    embedding = torch.randn(2, 8, generator=generator, requires_grad=True)
    inputs = (x, embedding, *layer.parameters())
    up = torch.randn(2, width, 8, 8, generator=generator)
    ours, plain = layer(x, embedding), plainly(layer, x, embedding)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    for given, expected in zip(
        torch.autograd.grad(ours, inputs, up), torch.autograd.grad(plain, inputs, up), strict=True
    ):
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_goes_through_the_mask_of_the_forward_pass(generator) -> None:
    """Along a direction, it is the loss's difference with the same mask."""
    layer = block(dropout=0.5).double()
    x, direction = (torch.randn(2, 64, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    embedding = torch.randn(2, 8, generator=generator, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return layer(x, embedding).square().sum()

    (gradient,) = torch.autograd.grad(loss(x.requires_grad_()), x)
    step = 1e-5
    with torch.no_grad():
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", [None, "aot_eager_decomp_partition"])
def test_convolutions_are_not_computed_again(backend) -> None:
    """A forward kernel for each of a block's convolutions, and none in the backward pass; compiled too."""
    layer = block(width=128)
    run = layer if backend is None else torch.compile(layer, backend=backend)
    x, embedding = torch.randn(2, 64, 8, 8, requires_grad=True), torch.randn(2, 8)
    run(x, embedding).sum().backward()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(x, embedding).sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    kernels = ("aten::mkldnn_convolution", "aten::_slow_conv2d_forward")
    assert counts["aten::convolution_backward"] == 5
    assert sum(counts.get(name, 0) for name in kernels) == 5


def test_what_is_recomputed_keeps_its_inputs_alone(generator) -> None:
    x = torch.randn(1000, generator=generator, requires_grad=True)
    plain = kept_bytes(lambda: (x.sin().exp() * x.cos()).sigmoid())
    ours = kept_bytes(lambda: recomputed(lambda x: (x.sin().exp() * x.cos()).sigmoid(), x * 1))
    assert plain >= 4 * x.nbytes
    assert ours == x.nbytes


def test_a_block_keeps_two_and_a_quarter_of_its_input(generator) -> None:
    """fp32: x, h between the convolutions, and a byte an element of the mask; in bf16 no weight besides."""
    layer = block()
    x = torch.randn(4, 64, 16, 16, generator=generator)
    embedding = torch.randn(4, 8, generator=generator)
    assert 2.25 * x.nbytes <= kept_bytes(lambda: layer(x, embedding)) < 2.3 * x.nbytes
    for module in (layer.conv0, layer.conv1):
        module.product_dtype = torch.bfloat16
    assert 2.25 * x.nbytes <= kept_bytes(lambda: layer(x, embedding)) < 2.3 * x.nbytes


def test_a_magnitude_preserving_layer_keeps_its_input_alone(generator) -> None:
    layer = MPConv(64, 64, (3, 3)).train()
    x = torch.randn(1, 64, 4, 4, generator=generator)
    assert kept_bytes(lambda: layer(x * 1, before=mp_silu)) == x.nbytes


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
@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_drops_a_share_p_and_keeps_the_mean(p, layout, compiled) -> None:
    torch.manual_seed(0)
    x = torch.ones(8, 32, 32, 32).contiguous(memory_format=layout)
    layer = Dropout(p)
    layer.compiled = compiled
    y = layer(x)
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


@pytest.mark.parametrize("compiled", [False, True])
def test_dropout_draws_the_same_mask_in_every_memory_format_and_derivative(compiled) -> None:
    x = torch.randn(2, 5, 3, 4)
    layer = Dropout(0.5)
    layer.compiled = compiled

    def dropped(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return layer(x)

    contiguous, last = dropped(x), x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(contiguous, dropped(last))
    assert torch.equal(contiguous, torch.func.jvp(dropped, (last,), (torch.ones_like(x),))[0])


def test_a_compiled_pass_draws_its_mask_in_the_order_of_channels_last() -> None:
    layer = Dropout(0.5)
    layer.compiled = True
    last = torch.randn(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    mask = layer.mask(last)
    torch.manual_seed(0)
    assert torch.equal(
        mask.permute(0, 2, 3, 1).flatten(), torch.zeros(last.numel(), dtype=bool).bernoulli_(0.5)
    )
    assert mask.stride() == last.stride()


def test_dropout_at_its_ends_and_in_evaluation_draws_nothing() -> None:
    x = torch.randn(4, 4)
    before = torch.get_rng_state()
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_a_group_norm_in_its_format_has_torchs_value_and_gradient(groups: int, generator) -> None:
    drawn = [torch.randn(2, 8, 3, 2, generator=generator).double() for _ in range(2)]
    x, dy = (value.to(memory_format=torch.channels_last) for value in (3 * drawn[0] + 1, drawn[1]))
    weight, bias = torch.randn(2, 8, generator=generator).double()
    inputs = tuple(value.requires_grad_() for value in (x, weight, bias))
    found = NormInFormat.apply(*inputs, groups, 1e-5)
    wanted = group_norm(x.contiguous(), groups, weight, bias, 1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)
    gradients = [torch.autograd.grad(y, inputs, dy, retain_graph=True) for y in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    assert gradients[0][0].is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradgradcheck(lambda *of: NormInFormat.apply(*of, groups, 1e-5), inputs, dy)
    weight, bias = (value.detach() for value in inputs[1:])  # a frozen network
    assert torch.autograd.gradgradcheck(lambda x: NormInFormat.apply(x, weight, bias, groups, 1e-5), x, dy)
