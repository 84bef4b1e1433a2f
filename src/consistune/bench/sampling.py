"""One-step sampling: ours in several forms, and diffusers' ConsistencyModelPipeline as the peer."""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from consistune.bench.timing import Timing, alternate, ratio
from consistune.bench.workload import Workload
from consistune.core.noise import EDM
from consistune.core.posterior.mean import quantise
from consistune.core.rng import ImageNoise
from consistune.errors import UserError
from consistune.interop.onnx import write_onnx
from consistune.models import sample
from consistune.nn.precond import Precision, Preconditioned

PEER = "diffusers"
PEER_CHANNELS = (256, 256, 240)
"""With 4 layers a block and attention at 16×16: 1.02 times DDPM++'s parameters."""
ROOM = 2
"""Pixel levels by which bf16 may move an image, at the 99th percentile."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

Draw = Callable[[int], Tensor]
"""n → n images; uint8 [n, C, H, W], or the peer's own form."""


def ours(model: Preconditioned, precision: Precision, channels_last: bool = True) -> Draw:
    """`consistune.sample` of a copy of the model in this precision and memory format."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.precision = precision
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda n: sample(model, range(n), steps=1)


def compiled(model: Preconditioned, precision: Precision) -> Draw:
    """`ours` with the network through torch.compile; the first call at each batch size compiles."""
    model = copy.deepcopy(model).eval().requires_grad_(False)
    model.precision = precision
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.network.compile(dynamic=False)
    return lambda n: sample(model, range(n), steps=1)


def onnx_runtime(model: Preconditioned) -> Draw:
    """The exported graph in ONNX Runtime, from the same noise. Raises UserError where that is missing."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is missing", "ONNX Runtime", 'pip install "consistune[onnx]"') from error
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        write_onnx(copy.deepcopy(model), file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    top = EDM().t_max

    def draw(n: int) -> Tensor:
        x = top * ImageNoise(range(n))(*model.image_shape)
        given = {"x": x.numpy(), "sigma": torch.full((n,), top).numpy()}
        return quantise(torch.from_numpy(session.run(["x0_hat"], given)[0]))

    return draw


def peer(side: int) -> tuple[Draw, torch.nn.Module]:
    """diffusers' pipeline as its documentation uses it, and its network. Raises UserError if missing."""
    try:
        from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel
    except ImportError as error:
        raise UserError(
            "the package diffusers is missing", PEER, 'pip install "consistune[bench]"'
        ) from error
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=side,
        layers_per_block=4,
        block_out_channels=PEER_CHANNELS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=16,
    ).eval()
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0)
    pipeline = ConsistencyModelPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return lambda n: pipeline(batch_size=n, num_inference_steps=1, output_type="np").images, network


def flops(network: torch.nn.Module, *inputs: Tensor) -> int:
    """Floating-point operations of a forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return int(counter.get_total_flops())


def checked(draws: dict[str, Draw], count: int = 4) -> dict[str, float]:
    """The 99th percentile of each form's distance in pixel levels from the first's images.

    Raises RuntimeError where one is not the same picture.
    """
    (_, first), *others = ((name, draw(count).int()) for name, draw in draws.items())
    off = {name: float((images - first).abs().double().quantile(0.99)) for name, images in others}
    if max(off.values()) > ROOM:
        raise RuntimeError(f"not the same images, in pixel levels: {off}")
    return off


def timed(forms: dict[str, Draw], batch: int, rounds: int) -> dict[str, Timing]:
    """Seconds of `batch` images from each form, in turns."""
    return alternate({name: partial(draw, batch) for name, draw in forms.items()}, rounds)


def against_peer(batches: tuple[int, ...], rounds: int, compile_too: bool = False) -> dict[str, Any]:
    """DDPM++ at 32×32: the same images from all our forms, then times of all and the peer in turns."""
    model = Workload("edm-cifar10-ddpmpp", 1).model().eval()
    forms: dict[str, Draw] = {f"ours, {word}": ours(model, word) for word in PRECISIONS}
    forms["ours, ONNX Runtime fp32"] = onnx_runtime(model)
    if compile_too:
        forms |= {f"ours, {word} compiled": compiled(model, word) for word in PRECISIONS}
    off = checked(forms)
    theirs, network = peer(32)
    x = torch.randn(1, 3, 32, 32)
    sizes = {
        "ours": {"parameters": count(model), "flops": flops(model, x, torch.tensor([80.0]))},
        PEER: {"parameters": count(network), "flops": flops(network, x, torch.tensor([10.0]))},
    }
    result: dict[str, Any] = {"sizes": sizes, "pixel levels off": off, "batches": {}}
    for batch in batches:
        times = timed({**forms, PEER: theirs}, batch, rounds)
        result["batches"][str(batch)] = {
            "times": {
                name: {**timing.record(), "images a second": round(batch / timing.median, 3)}
                for name, timing in times.items()
            },
            "times as fast as the peer": {name: ratio(times[PEER], times[name]).record() for name in forms},
        }
    return result


def count(network: torch.nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
