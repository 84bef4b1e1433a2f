"""What is checked and done to the networks of a run before their first step."""

from typing import Any

import torch
from torch import nn

from consistune.errors import UserError
from consistune.nn.lean import Dropout
from consistune.nn.precond import Preconditioned
from consistune.system.processes import Processes
from consistune.training import sharding
from consistune.training.options import TrainOptions
from consistune.training.precision import UntilRatio


def refuse_without_effect(options: TrainOptions, model: Preconditioned, processes: Processes) -> None:
    """Raises UserError for an option that has no effect, or cannot be, on this network and processes."""
    choice, network = options.precision, model.network
    word = choice.first if isinstance(choice, UntilRatio) else choice
    if word == "bf16-inner" and not hasattr(network, "outer_layers"):
        what = f"{type(network).__name__} has no outer layers that could stay in fp32"
        raise UserError(what, "train.precision=bf16-inner", "use bf16")
    if options.shard and processes.count == 1:
        what = "a run of one process has nothing to split"
        raise UserError(what, "train.shard", "leave it out, or start several processes with torchrun")
    if options.shard and not sharding.possible():
        what = f"FSDP2 of PyTorch {torch.__version__} splits every weight, and scalars cannot be split"
        raise UserError(what, "train.shard", "leave it out, or install a newer PyTorch")
    if options.compile == "graphs":
        _check_graphs(options, processes.device)


def _check_graphs(options: TrainOptions, device: torch.device) -> None:
    """Raises UserError where a step cannot be replayed as CUDA graphs."""
    hindrances = {
        f"the device is {device.type}": device.type != "cuda",
        "train.shard gathers the weights to another place in every step": options.shard,
        "train.checkpointing runs forward passes inside the backward pass": options.checkpointing,
    }
    if what := next((reason for reason, there in hindrances.items() if there), None):
        raise UserError(f"CUDA graphs cannot be used: {what}", "train.compile=graphs", "use true or false")


def prepare_network(network: nn.Module, options: TrainOptions) -> None:
    """Activation checkpointing and compilation, in place. Raises UserError where there are no blocks."""
    if options.checkpointing:
        if not hasattr(network, "checkpointing"):
            raise UserError(
                f"{type(network).__name__} has no blocks to checkpoint", "train.checkpointing", "leave it out"
            )
        network.checkpointing = True  # type: ignore[assignment]
    if options.compile:
        compile_blocks(network, graphs=options.compile == "graphs")


def compile_blocks(network: nn.Module, graphs: bool = False) -> None:
    """Compile the forward of each block, or of the whole network where it has none, in place.

    Hooks of a sharded block stay outside of the graph. The masks are the eager generator's, or student and
    target, or a pass and its forward derivative, would not drop out alike. Shapes are constants: blocks share
    their code, and dynamo would take the channels of the second one for variables.

    graphs: each block's kernels are recorded as CUDA graphs and replayed, forward and backward. What they
    return is overwritten after the next `torch.compiler.cudagraph_mark_step_begin`.
    """
    config: dict[str, Any] = {"fallback_random": True, "triton.cudagraphs": graphs}
    parts = sharding.blocks(network) or [network]
    dynamo: Any = torch._dynamo.config
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"  # PyTorch 2.6
    setattr(dynamo, limit, max(getattr(dynamo, limit), 8 * len(parts)))  # blocks share their code
    for module in network.modules():
        if isinstance(module, Dropout):
            module.compiled = True
    for part in parts:
        part.forward = torch.compile(part.forward, dynamic=False, options=config)
