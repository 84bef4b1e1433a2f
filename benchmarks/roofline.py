"""Operations, bytes and kernels of a training step, counted on the meta device: what an H100 would take.

    python benchmarks/roofline.py            writes results/roofline.json and the table in docs/card.md

A prediction, not a measurement. Eager: each operation is one kernel that reads its operands and writes its
results once; it takes the longest of its arithmetic, bytes and a launch. Compiled, at best: only products,
convolutions and attention remain as kernels, and all else is fused into them. Floor: the arithmetic alone.
"""

import collections
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from consistune.nn import layers
from consistune.nn.presets import preset
from consistune.system.files import write_atomically
from tables import fill, markdown

RATES = {"bf16": 450e12, "tf32": 250e12, "fp32": 48e12, "fp64": 30e12}
"""FLOP/s that kernels of these sizes reach on an H100: our assumption, half to four fifths of its best."""
PEAK = 798e12
"""FLOP/s of a large bf16 product, as measured on one H100: the rate of the floor."""
BANDWIDTH, LAUNCH_S = 2.7e12, 2e-6
OPTIMIZER_NUMBERS = 10
"""Numbers read and written a parameter: RAdam reads 4 and writes 3, the average reads 2 and writes 1."""
NO_KERNEL = frozenset(
    """view _unsafe_view expand permute transpose t slice select unsqueeze squeeze detach alias as_strided
    split unbind _reshape_alias split_with_sizes empty empty_like new_empty empty_strided new_empty_strided
    lift_fresh chunk""".split()  # noqa: SIM905
)
STEPS = (("edm-cifar10-ddpmpp", 512), ("edm-cifar10-ddpmpp", 128), ("edm2-img64-s", 128))
FORMS = ("fp32", "tf32", "bf16")


class Counted(TorchDispatchMode):
    """The operations of a block: kernels, FLOP, bytes, and seconds, all and of those with products."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word
        self.total: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.split("::")[-1] in NO_KERNEL:
            return out
        ins = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outs = [x for x in pytree.tree_leaves(out) if isinstance(x, Tensor) and not any(x is y for y in ins)]
        moved = sum(x.numel() * x.element_size() for x in (*ins, *outs))
        count = flop_registry.get(func.overloadpacket)
        flop = count(*args, **(kwargs or {}), out_val=out) if count else 0
        seconds = max(flop / self._rate(ins), moved / BANDWIDTH, LAUNCH_S)
        self.total.update(kernels=1, FLOP=flop, bytes=moved)
        self.total["seconds"] += seconds  # type: ignore[assignment]
        if flop:
            self.total["seconds of products"] += seconds  # type: ignore[assignment]
        return out

    def _rate(self, ins: list[Tensor]) -> float:
        widest = max(ins, key=Tensor.numel, default=None)
        if widest is None or widest.dtype == torch.float32:
            return RATES["tf32" if self.word == "tf32" else "fp32"]
        return RATES["fp64" if widest.dtype == torch.float64 else "bf16"]


LIBRARY = torch.library.Library("roofline", "DEF")  # kept: its operators end with it
LIBRARY.define("flash(Tensor q, Tensor k, Tensor v) -> Tensor")
LIBRARY.define("flash_backward(Tensor g, Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor, Tensor)")
LIBRARY.impl("flash", lambda q, *_: torch.empty_like(q), "Meta")
LIBRARY.impl("flash_backward", lambda _, *qkv: tuple(map(torch.empty_like, qkv)), "Meta")
flop_registry.update(
    {
        torch.ops.roofline.flash: lambda q, k, *_, **__: 4 * math.prod(q.shape) * k.shape[-2],
        torch.ops.roofline.flash_backward: lambda _, q, k, *__, **___: 10 * math.prod(q.shape) * k.shape[-2],
    }
)


class Flash(torch.autograd.Function):
    """Attention as one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.ops.roofline.flash(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return torch.ops.roofline.flash_backward(grad, *ctx.saved_tensors)


@contextmanager
def as_on_a_card() -> Iterator[None]:
    """Within it the networks' attention is `Flash`, and their group norms are those of channels last."""
    before = layers.scaled_dot_product_attention, layers.GroupNorm.forward
    layers.scaled_dot_product_attention = Flash.apply  # type: ignore[assignment]
    layers.GroupNorm.forward = layers.GroupNorm.in_its_format  # type: ignore[method-assign]
    try:
        yield
    finally:
        layers.scaled_dot_product_attention, layers.GroupNorm.forward = before  # type: ignore[method-assign]


@dataclass(frozen=True)
class Step:
    """The count of a consistency step: the student's pass, the target's without gradient, the backward."""

    network: str
    batch: int
    word: str

    def count(self, **network: Any) -> dict[str, Any]:
        """Totals of the step, with the optimizer's bytes; `network` replaces arguments of the network."""
        with torch.device("meta"), as_on_a_card(), Counted(self.word) as counted:
            model = preset(self.network, **network).train()
            model.precision = "bf16" if self.word == "bf16" else "fp32"
            counted.total.clear()
            x, t = torch.empty(self.batch, *model.image_shape), torch.empty(self.batch)
            condition = torch.empty(self.batch, model.num_classes) if model.num_classes else None
            ours = model(x, t, condition)
            with torch.no_grad():
                target = model(x, t, condition)
            ((ours - target).flatten(1).square().sum(1).sqrt() / t).sum().backward()
        parameters = sum(p.numel() for p in model.parameters())
        update = parameters * 4 * OPTIMIZER_NUMBERS / BANDWIDTH
        return {**counted.total, "parameters": parameters, "seconds of the update": update}

    def rows(self) -> list[dict[str, Any]]:
        """The eager step; in bf16 also the compiled one, and the floor."""
        found = self.count()
        update = found["seconds of the update"]
        seconds = {f"{self.word} eager": found["seconds"] + update}
        if self.word == "bf16":
            seconds["bf16 compiled, at best"] = found["seconds of products"] + update
            seconds["floor"] = found["FLOP"] / PEAK
        common = {"network": self.network, "batch": self.batch}
        more = {key: found[key] for key in ("kernels", "FLOP", "bytes")}
        return [{**common, "form": form, "seconds": round(s, 4), **more} for form, s in seconds.items()]


def table(rows: list[dict[str, Any]]) -> str:
    """A row a network and batch, a column a form."""
    forms = list(dict.fromkeys(row["form"] for row in rows))
    found = {(row["network"], row["batch"], row["form"]): row["seconds"] for row in rows}
    steps = dict.fromkeys((row["network"], row["batch"]) for row in rows)
    head = ["expected by count, seconds a step", *forms]
    cells = {step: [f"{found[*step, form]:.2f}" for form in forms] for step in steps}
    return markdown(head, [[f"`{name}`, batch {batch}", *cells[name, batch]] for name, batch in steps])


def main() -> None:
    rows = [row for network, batch in STEPS for word in FORMS for row in Step(network, batch, word).rows()]
    record = {"assumed": {"FLOP/s": RATES, "bytes/s": BANDWIDTH, "launch, seconds": LAUNCH_S}, "steps": rows}
    write_atomically(Path(__file__).parent / "results" / "roofline.json", json.dumps(record, indent=1) + "\n")
    fill("card.md", "roofline", table(rows))


if __name__ == "__main__":
    main()
