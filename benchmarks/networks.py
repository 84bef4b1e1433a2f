"""The speed of the networks on one thread, in CPU time: training steps of each, and DDPM++ by its parts.

    python benchmarks/networks.py [throughput] [ddpmpp] [--only NETWORK …]

throughput: images a second and peak memory of a consistency step of each network, in fp32 and bf16, each case
  in a process of its own. A step has two evaluations (one with gradients), the optimizer and one average. The
  trainer stands half-way through training, where the target is evaluated.
ddpmpp: a forward and backward pass of CIFAR-10's DDPM++ against a stack of torch's nn.Conv2d alone, of the
  same sizes, on inputs of the same sizes: what the convolutions cost.
"""

import copy
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from consistune.bench.timing import alternate, in_own_process
from consistune.core.estimators import OneSample
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.data.images import ImageSet
from consistune.nn import store
from consistune.nn.layers import Conv2d
from consistune.nn.precond import Preconditioned
from consistune.nn.presets import preset
from consistune.recipe import build, read_recipe
from consistune.system.host import machine, peak_bytes
from consistune.training.loop import Trainer
from consistune.training.optim import Optimizer
from consistune.training.options import TrainOptions
from harness import Benchmark, Record
from tables import markdown

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--batch", type=int, default=16, help="of ddpmpp")
CASES = {
    "digits-edm": ("the recipes' network", 128, 20),
    "mnist10k-edm": ("the recipes' network", 64, 8),
    "emoji32-edm": ("the recipes' network", 16, 3),
    "edm-cifar10-ddpmpp": ("CIFAR-10's DDPM++", 2, 3),
    "emoji64-edm2": ("the recipes' network", 2, 3),
    "edm-imagenet64-adm": ("ImageNet-64's ADM", 1, 2),
    "edm2-img64-s": ("EDM2's S", 1, 2),
}
"""Recipe or preset → what it is, images a step, timed steps."""
SHAPES = {"digits-edm": (1, 8, 8), "mnist10k-edm": (1, 32, 32), "emoji32-edm": (3, 32, 32)}


def network(name: str) -> Preconditioned:
    if not name.endswith(("-edm", "emoji64-edm2")):
        return preset(name)
    section = read_recipe(name).network
    options = build(section, "network", image_shape=SHAPES.get(name, (3, 64, 64)), num_classes=10).options
    return store.build({"network": {"kind": section.kind, **options}, "precond": {"kind": "edm"}})


def case(name: str, precision: str, rounds: int) -> Record:
    """Steps of one network, in a process of its own."""
    what, batch, _ = CASES[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = network(name)
    classes = model.num_classes or 1
    images = torch.randint(256, (2 * batch, *model.image_shape), dtype=torch.uint8)
    names = tuple(map(str, range(classes)))
    data = ImageSet.of("noise", images, torch.arange(2 * batch) % classes, names)
    options = TrainOptions(images=1_000_000, batch=batch, precision=precision)
    pairs = LogNormalPairs(gap=SigmoidGap(q=2, every_images=100_000))
    trainer = Trainer(model, Consistency(EDM(), pairs, OneSample()), data, Optimizer("adam", 1e-5), options)
    trainer.images = options.images // 2
    steps = trainer.steps()
    timing = alternate({"step": lambda: next(steps)}, rounds, clock=time.process_time)["step"]
    return {
        "network": name,
        "what": what,
        "precision": precision,
        "batch": batch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_second": round(batch / timing.median, 3),
        "seconds_per_step": [round(value, 4) for value in timing.seconds],
        "peak_mib": round(peak_bytes() / 2**20),
    }


def throughput_table(record: Record) -> str:
    cases = {(row["network"], row["precision"]): row for row in record["cases"]}
    rows = []
    for name in (name for name in CASES if (name, "fp32") in cases):
        row = [f"`{name}`", f"{cases[name, 'fp32']['parameters'] / 1e6:,.1f} M", cases[name, "fp32"]["batch"]]
        for word in ("fp32", "bf16"):
            if (name, word) in cases:
                speed = cases[name, word]["images_per_second"]
                memory = cases[name, word]["peak_mib"] / 1024
                row += [f"{speed:,.0f}" if speed >= 100 else f"{speed:.2g}", f"{memory:.2f} GiB"]
            else:
                row += ["–", "–"]
        rows.append(row)
    header = [
        "network",
        "parameters",
        "images a step",
        "fp32, images/s",
        "memory",
        "bf16, images/s",
        "memory",
    ]
    about = (
        f"One thread of {record['cpu']}, torch {record['torch']}, in processor time; medians of 2 to 20 "
        "steps, one run each; memory is the process's peak. The MLP computes in fp32 alone."
    )
    return f"{markdown(header, rows)}\n{about}"


@benchmark.section(
    "throughput.json", CASES, tables={("results/throughput.md", "throughput"): throughput_table}
)
def throughput(given: Namespace, part: str) -> Record:
    cases = {(row["network"], row["precision"]): row for row in given.record.get("cases", [])}
    for precision in ("fp32",) if part == "digits-edm" else ("fp32", "bf16"):
        steps = given.rounds if given.quick else CASES[part][2]
        cases[part, precision] = in_own_process(case, part, precision, steps)
    order, host = list(CASES), machine()
    return {
        "what": "training steps of a consistency model, data random, one process",
        "cpu": host["processor"],
        "threads": 1,
        "torch": host["torch"],
        "cases": sorted(cases.values(), key=lambda row: (order.index(row["network"]), row["precision"])),
    }


# --- DDPM++ by its parts


def convolutions(model: Preconditioned, x: Tensor, sigma: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """A plain convolution and an input for each convolution that the network runs."""
    stack: list[tuple[nn.Conv2d, Tensor]] = []

    def record(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        width, inner, kernel, _ = module.weight.shape
        plain = nn.Conv2d(inner, width, kernel, padding=kernel // 2)
        stack.append((plain, torch.randn(len(x), inner, *output.shape[2:], requires_grad=True)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, Conv2d)]
    with torch.no_grad():
        model(x, sigma)
    for hook in hooks:
        hook.remove()
    return stack


def channels_last(stack: list[tuple[nn.Conv2d, Tensor]]) -> list[tuple[nn.Conv2d, Tensor]]:
    form = torch.channels_last
    return [
        (
            copy.deepcopy(plain).to(memory_format=form),
            x.detach().contiguous(memory_format=form).requires_grad_(),
        )
        for plain, x in stack
    ]


def run_network(model: Preconditioned, x: Tensor, sigma: Tensor) -> None:
    model.zero_grad()
    model(x, sigma).square().mean().backward()


def run_stack(stack: list[tuple[nn.Conv2d, Tensor]]) -> None:
    for convolution, x in stack:
        convolution.zero_grad()
        x.grad = None
        convolution(x).mean().backward()


def shares(run: Callable[[], object]) -> dict[str, float]:
    """Shares of CPU time of the twelve operations that take most of it."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 4) for event in events[:12]}


@benchmark.section("network_speed.json")
def ddpmpp(given: Namespace) -> Record:
    batch = 1 if given.quick else given.batch
    torch.manual_seed(0)
    x, sigma = torch.randn(batch, 3, 32, 32), torch.rand(batch) + 0.1
    model, last = (
        preset("edm-cifar10-ddpmpp"),
        preset("edm-cifar10-ddpmpp").to(memory_format=torch.channels_last),
    )
    stack = convolutions(model, x, sigma)
    runs = {
        "network": partial(run_network, model, x, sigma),
        "network, channels last": partial(run_network, last, x.to(memory_format=torch.channels_last), sigma),
        "stack": partial(run_stack, stack),
        "stack, channels last": partial(run_stack, channels_last(stack)),
    }
    times = alternate(runs, given.rounds, clock=time.process_time)
    median = {name: timing.median for name, timing in times.items()}
    return {
        "what": f"DDPM++ CIFAR-10, forward and backward, batch {batch}, fp32, seconds of one thread",
        "machine": machine(),
        "convolutions": len(stack),
        "median": {name: round(value, 3) for name, value in median.items()},
        "seconds": {name: [round(value, 3) for value in timing.seconds] for name, timing in times.items()},
        "network / stack": round(median["network"] / median["stack"], 3),
        "network, channels last / stack": round(median["network, channels last"] / median["stack"], 3),
        "share of the network's time": shares(runs["network"]),
        "share of the network's time, channels last": shares(runs["network, channels last"]),
    }


if __name__ == "__main__":
    benchmark.main()
