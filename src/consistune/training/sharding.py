"""Weights, gradients, optimizer and averages sharded over the processes (FSDP2), and gathered again.

`torch.distributed.fsdp.fully_shard` splits the first dimension and gathers a block when its pass needs it.
Scalars cannot be split: every process holds them, and their gradients are averaged here. The functions return
tensors that are not sharded unchanged.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from consistune.nn import store
from consistune.nn.magnitude import MPConv, normalize
from consistune.nn.precond import Preconditioned
from consistune.system.processes import Processes


def possible() -> bool:
    """Whether FSDP2 can leave scalars whole; that of PyTorch 2.6 cannot."""
    from torch.distributed.fsdp import fully_shard

    return "ignored_params" in inspect.signature(fully_shard).parameters


def shard(module: nn.Module, processes: Processes) -> None:
    """Shard a model's parameters in place: each block of its network by itself, then the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    scalars = {p for p in module.parameters() if p.ndim == 0}
    # Resharded after the forward, because an average has no backward and its parts are read afterwards.
    options: dict[str, Any] = {"mesh": mesh, "ignored_params": scalars, "reshard_after_forward": True}
    for block in blocks(module):
        fully_shard(block, **options)
    fully_shard(module, **options)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network, which are gathered, and compiled, one by one."""
    containers = nn.ModuleDict, nn.ModuleList
    inside = [block for part in module.modules() if isinstance(part, containers) for block in part.children()]
    return [block for block in inside if not isinstance(block, containers)]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradients(model: nn.Module) -> list[Tensor]:
    """This process's parts of all gradients."""
    return [local(p.grad) for p in model.parameters() if p.grad is not None]


def gradient_norm(model: nn.Module, processes: Processes) -> Tensor:
    """The L2 norm of all gradients. In a sharded model, scalars' gradients are first averaged in place."""
    split = [p.grad for p in model.parameters() if isinstance(p.grad, DTensor)]
    if not split:
        return torch.nn.utils.get_total_norm(gradients(model))
    scalars = [p.grad for p in model.parameters() if p.ndim == 0 and p.grad is not None]
    mean = processes.sum(torch.stack(scalars or [torch.zeros((), device=processes.device)]))
    mean /= processes.count
    for gradient, value in zip(scalars, mean, strict=False):
        gradient.copy_(value)
    parts = torch.nn.utils.get_total_norm([local(gradient) for gradient in split])
    return (processes.sum(parts.square()) + mean.square().sum()).sqrt()


@torch.no_grad()
def force_weight_norms(model: nn.Module) -> None:
    """EDM2's forced weight normalisation of this process's rows, before a sharded or a compiled pass.

    Such a pass cannot do it: a gathered weight is a copy, and a compiled pass does not write weights.
    """
    for module in model.modules():
        if isinstance(module, MPConv) and local(module.weight).numel():
            weight = local(module.weight)
            weight.copy_(normalize(weight.to(torch.promote_types(weight.dtype, torch.float32))))


def whole(tree: Any) -> Any:
    """The tree with every sharded tensor gathered on the CPU. All processes have to call this."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [whole(value) for value in tree]
    return tree


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load whole tensors into a model; each process takes its part."""
    own = model.state_dict()
    model.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's whole state; each process takes its part. Its choice of kernels does not change."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        key: {name: _moment(value, parameters[key]) for name, value in entry.items()}
        for key, entry in state["state"].items()
    }
    kernels = ("foreach", "fused")
    groups = [
        {**saved, **{key: own[key] for key in kernels if key in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _like(value: Any, model: Tensor | None) -> Any:
    if not isinstance(model, DTensor) or not isinstance(value, Tensor) or value.shape != model.shape:
        return value
    value = value.to(model.device)
    return distribute_tensor(value, model.device_mesh, model.placements, src_data_rank=None)


def _moment(value: Any, parameter: Tensor) -> Any:
    """This process's part of a moment, in its parameter's memory format, which fused kernels need."""
    value = _like(value, parameter)
    if not isinstance(value, Tensor) or isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def gathered(model: Preconditioned) -> Preconditioned:
    """A whole copy of a sharded model, in evaluation mode. All processes have to call this."""
    copy = store.build(store.describe(model))
    copy.load_state_dict(whole(model.state_dict()))
    return copy.to(next(model.parameters()).device).eval()
