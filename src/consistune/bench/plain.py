"""The baseline of the comparison: the same training step as a direct transcription of the equations.

It computes in fp32 on contiguous images, one operation after another. Attention computes the whole matrix.
RAdam and the average of the weights go parameter by parameter. It reads the weights of the modules that it is
compared with, so both compute the same function.
"""

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, dropout, group_norm, interpolate, linear, silu

from consistune.bench.workload import StepInputs
from consistune.core.rng import SharedDropout
from consistune.core.types import Times, expand
from consistune.nn.blocks import ResidualBlock
from consistune.nn.edm2 import Block, EDM2UNet
from consistune.nn.layers import Conv2d, GroupNorm, Resampler
from consistune.nn.magnitude import MPConv
from consistune.nn.precond import Preconditioned
from consistune.nn.song import SongUNet

EPS = 1e-4


def denoise(model: Preconditioned, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
    """D(x; σ) of a DDPM++ or EDM2 model, x [B, C, H, W], sigma [B]. Raises ValueError for other networks."""
    c_skip, c_out, c_in, c_noise = model.scalings(sigma)
    one_hot = model.one_hot(condition, len(x), c_noise)
    network = model.network
    if isinstance(network, SongUNet):
        raw = _song(network, expand(c_in, x) * x, network.embed(c_noise, one_hot, None))
    elif isinstance(network, EDM2UNet):
        raw = _edm2(network, expand(c_in, x) * x, network.embed(c_noise, one_hot))
    else:
        raise ValueError(f"there is no plain form of {type(network).__name__}")
    return expand(c_skip, x) * x + expand(c_out, x) * raw


def losses(model: Preconditioned, x_0: Tensor, times: Times, noise: Tensor, labels: Tensor | None) -> Tensor:
    """ECT's loss ‖D(x_t, t) − sg D(x_r, r)‖/(t − r), [B]; both passes use the same dropout mask."""
    t, r = times.t, times.r
    mask = SharedDropout(x_0.device)
    f_t = denoise(model, x_0 + expand(t, x_0) * noise, t, labels)
    with torch.no_grad(), mask.again():
        f_r = denoise(model, x_0 + expand(r, x_0) * noise, r, labels)
    return (f_t - f_r).square().sum(dim=(1, 2, 3)).sqrt() / (t - r)


class PlainLoop:
    """The plain loop: a model, RAdam and the exponential average of the weights."""

    def __init__(self, model: Preconditioned, lr: float = 1e-4, decay: float = 0.9999) -> None:
        self.model, self.decay = model.train(), decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.RAdam(model.parameters(), lr=lr, foreach=False)

    def step(self, inputs: StepInputs) -> float:
        """Take one step and return its loss."""
        self.optimizer.zero_grad()
        loss = losses(self.model, inputs.x_0, inputs.times, inputs.noise, inputs.labels).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                average.mul_(self.decay).add_(parameter, alpha=1 - self.decay)
        return float(loss.detach())


def _attention(qkv: Tensor, heads: int, normalised: bool) -> Tensor:
    """softmax(q kᵀ/√d) v with the whole matrix; qkv [B, 3C, H, W] → [B, C, H, W]."""
    batch, channels, height, width = qkv.shape
    apart = qkv.reshape(batch, heads, channels // (3 * heads), 3, height * width)
    if normalised:
        apart = apart / (EPS + apart.norm(dim=2, keepdim=True) / math.sqrt(apart.shape[2]))
    q, k, v = apart.unbind(3)
    weight = torch.softmax(torch.einsum("bhcq,bhck->bhqk", q, k / math.sqrt(q.shape[2])), dim=3)
    return torch.einsum("bhqk,bhck->bhcq", weight, v).reshape(batch, channels // 3, height, width)


def _resampled(x: Tensor, resample: str) -> Tensor:
    if resample == "down":
        return avg_pool2d(x, 2)
    return interpolate(x, scale_factor=2, mode="nearest") if resample == "up" else x


def _conv(module: Conv2d, x: Tensor) -> Tensor:
    return conv2d(_resampled(x, module.resample), module.weight, module.bias, padding=module.padding)


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    norm = cast(GroupNorm, module)
    return group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def _song(network: SongUNet, x: Tensor, embedding: Tensor) -> Tensor:
    skips: list[Tensor] = []
    for module in network.enc.values():
        if isinstance(module, ResidualBlock):
            x = _song_block(module, x, embedding)
        elif isinstance(module, Conv2d):
            x = _conv(module, x)
        else:
            raise ValueError("the plain form exists for DDPM++ alone, whose encoder is standard")
        skips.append(x)
    for name, module in network.dec.items():
        if name.endswith("aux_norm"):
            x = silu(_norm(module, x))
        elif isinstance(module, ResidualBlock):
            x = _song_block(module, torch.cat([x, skips.pop()], dim=1) if "block" in name else x, embedding)
        else:
            x = _conv(cast(Conv2d, module), x)
    return x


def _song_block(block: ResidualBlock, x: Tensor, embedding: Tensor) -> Tensor:
    h = _conv(block.conv0, silu(_norm(block.norm0, x)))
    h = h + linear(embedding, block.affine.weight, block.affine.bias)[:, :, None, None]
    h = dropout(silu(_norm(block.norm1, h)), block.dropout.p, block.training)
    h = _conv(block.conv1, h)
    if isinstance(block.skip, Conv2d):
        x = _conv(block.skip, x)
    elif isinstance(block.skip, Resampler):
        x = _resampled(x, block.skip.resample)
    x = (h + x) * block.skip_scale
    if block.heads:
        attended = _attention(_conv(block.qkv, _norm(block.norm2, x)), block.heads, normalised=False)
        x = (_conv(block.proj, attended) + x) * block.skip_scale
    return x


def _edm2(network: EDM2UNet, x: Tensor, embedding: Tensor) -> Tensor:
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    skips: list[Tensor] = []
    for module in network.enc.values():
        x = _edm2_block(module, x, embedding) if isinstance(module, Block) else _mp_conv(module, x)
        skips.append(x)
    for name, module in network.dec.items():
        if "block" in name:
            skip = skips.pop()
            both = math.sqrt((x.shape[1] + skip.shape[1]) / 2)
            x = torch.cat([x / math.sqrt(x.shape[1]), skip / math.sqrt(skip.shape[1])], dim=1) * both
        x = _edm2_block(cast(Block, module), x, embedding)
    return _mp_conv(network.out_conv, x, network.out_gain)


def _edm2_block(block: Block, x: Tensor, embedding: Tensor) -> Tensor:
    options = block.options
    x = _resampled(x, block.resample)
    if block.flavor == "enc":
        x = x if isinstance(block.conv_skip, nn.Identity) else _mp_conv(block.conv_skip, x)
        x = x / (EPS + x.norm(dim=1, keepdim=True) / math.sqrt(x.shape[1]))
    y = _mp_conv(block.conv_res0, silu(x) / 0.596)
    c = _mp_conv(block.emb_linear, embedding, block.emb_gain) + 1
    y = silu(y * c[:, :, None, None]) / 0.596
    if isinstance(block.dropout, nn.Dropout):
        y = dropout(y, block.dropout.p, block.training)
    y = _mp_conv(block.conv_res1, y)
    if block.flavor == "dec":
        x = x if isinstance(block.conv_skip, nn.Identity) else _mp_conv(block.conv_skip, x)
    x = _mp_sum(x, y, options.res_balance)
    if block.heads:
        attended = _attention(_mp_conv(block.attn_qkv, x), block.heads, normalised=True)
        x = _mp_sum(x, _mp_conv(block.attn_proj, attended), options.attn_balance)
    return x.clip(-options.clip_act, options.clip_act)


def _mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def _mp_conv(module: nn.Module, x: Tensor, gain: float | Tensor = 1.0) -> Tensor:
    conv = cast(MPConv, module)
    if conv.training and torch.is_grad_enabled():
        with torch.no_grad():
            conv.weight.copy_(_unit(conv.weight))
    weight = _unit(conv.weight) * (gain / math.sqrt(conv.weight[0].numel()))
    return linear(x, weight) if weight.ndim == 2 else conv2d(x, weight, padding=weight.shape[-1] // 2)


def _unit(weight: Tensor) -> Tensor:
    norm = weight.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1))
    return weight / (EPS + norm / math.sqrt(weight[0].numel()))
