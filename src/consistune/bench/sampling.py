"""One-step sampling: ours in several forms, and diffusers' ConsistencyModelPipeline as the peer."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from consistune.bench.timing import Timing, alternate
from consistune.core.noise import EDM
from consistune.core.posterior.mean import quantise
from consistune.core.rng import ImageNoise
from consistune.interop.onnx import write_onnx
from consistune.models import sample
from consistune.nn.precond import Precision, Preconditioned

PEER = "diffusers"
PEER_CHANNELS = (256, 256, 240)
"""With 4 layers a block and attention at 16×16 the peer has 1.02 times DDPM++'s parameters."""
TOLERANCE = 2
"""The 99th percentile by which a form may change fp32's images, in pixel levels."""

DrawImages = Callable[[int], Tensor]
"""n → n images, uint8 [n, C, H, W]; the peer returns its own form."""


def ours(model: Preconditioned, precision: Precision, compiled: bool = False) -> DrawImages:
    """`consistune.sample` of a copy of the model in this precision, channels last.

    With `compiled` the network goes through torch.compile, at the first call for each batch size.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.precision = precision
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        model.network.compile(dynamic=False)
    return lambda n: sample(model, range(n), steps=1)


def onnx_runtime(model: Preconditioned) -> DrawImages:
    """The exported graph in ONNX Runtime, from the same noise. Needs the extra "onnx"."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(copy.deepcopy(model), file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    t_max = EDM().t_max

    def draw(n: int) -> Tensor:
        x = t_max * ImageNoise(range(n))(*model.image_shape)
        inputs = {"x": x.numpy(), "sigma": torch.full((n,), t_max).numpy()}
        return quantise(torch.from_numpy(session.run(["x0_hat"], inputs)[0]))

    return draw


def peer(
    side: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels: tuple[int, int, int] | None = None,
) -> tuple[DrawImages, torch.nn.Module]:
    """diffusers' pipeline as its documentation uses it, and its network. Needs the extra "bench".

    channels: of the network's three levels, multiples of 16; None: PEER_CHANNELS.
    """
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

    torch.manual_seed(0)
    network = (
        UNet2DModel(
            sample_size=side,
            layers_per_block=4,
            block_out_channels=channels or PEER_CHANNELS,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=16,
        )
        .to(device, dtype)
        .eval()
    )
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    pipeline = ConsistencyModelPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    kind = "np" if dtype == torch.float32 else "pt"  # NumPy has no bfloat16

    def draw(n: int) -> Any:
        images = pipeline(batch_size=n, num_inference_steps=1, output_type=kind).images
        return images if kind == "np" else images.float().cpu()

    return draw, network


def flops(network: torch.nn.Module, *inputs: Tensor) -> int:
    """Floating-point operations of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return int(counter.get_total_flops())


def checked(forms: Mapping[str, DrawImages], count: int = 4) -> dict[str, float]:
    """The 99th percentile of each form's difference from the first form's images, in pixel levels.

    Raises RuntimeError where it exceeds TOLERANCE.
    """
    (_, first), *others = ((name, draw(count).int()) for name, draw in forms.items())
    levels = {name: float((images - first).abs().double().quantile(0.99)) for name, images in others}
    if max(levels.values()) > TOLERANCE:
        raise RuntimeError(f"not the same images, in pixel levels: {levels}")
    return levels


def timed(forms: Mapping[str, DrawImages], batch: int, rounds: int) -> dict[str, Timing]:
    """Seconds of `batch` images from each form, in turns."""
    return alternate({name: partial(draw, batch) for name, draw in forms.items()}, rounds)
