"""The speed of the CIFAR-10 DDPM++ network on CPU: against a plain stack of its convolutions, and by part.

One forward and backward pass on one thread, in the process's CPU time, which other work on the machine
lengthens least. The stack is torch's own nn.Conv2d of the same sizes, on inputs of
the same sizes, without bias sums, norms, activations, attention or an embedding: what the arithmetic alone
costs. Writes results/network_speed.json.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from consistune.nn.layers import Conv2d
from consistune.nn.precond import Preconditioned
from consistune.nn.presets import preset
from consistune.system.host import machine

RESULT = Path(__file__).parent / "results" / "network_speed.json"


def convolutions(model: Preconditioned, x: Tensor, sigma: Tensor) -> list[tuple[nn.Conv2d, Tensor]]:
    """A plain convolution and an input for each one that the network runs."""
    found: list[tuple[nn.Conv2d, Tensor]] = []

    def record(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        width, inner, kernel, _ = module.weight.shape
        plain = nn.Conv2d(inner, width, kernel, padding=kernel // 2)
        found.append((plain, torch.randn(len(x), inner, *output.shape[2:], requires_grad=True)))

    hooks = [m.register_forward_hook(record) for m in model.modules() if isinstance(m, Conv2d)]
    with torch.no_grad():
        model(x, sigma)
    for hook in hooks:
        hook.remove()
    return found


def run_network(model: Preconditioned, x: Tensor, sigma: Tensor) -> None:
    model.zero_grad()
    model(x, sigma).square().mean().backward()


def run_stack(stack: list[tuple[nn.Conv2d, Tensor]]) -> None:
    for convolution, given in stack:
        convolution.zero_grad()
        given.grad = None
        convolution(given).mean().backward()


def alternate(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, in turns, so that a disturbance meets all; the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def parts(run: Callable[[], None]) -> dict[str, float]:
    """Share of CPU time of the operations that take most of it."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        run()
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / total, 4) for event in events[:12]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    batch, rounds = vars(parser.parse_args()).values()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, sigma = torch.randn(batch, 3, 32, 32), torch.rand(batch) + 0.1
    model = preset("edm-cifar10-ddpmpp")
    last = preset("edm-cifar10-ddpmpp").to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    stack = convolutions(model, x, sigma)
    stack_last = [
        (
            nn.Conv2d(plain.in_channels, plain.out_channels, plain.kernel_size, padding=plain.padding).to(
                memory_format=torch.channels_last
            ),
            given.detach().contiguous(memory_format=torch.channels_last).requires_grad_(),
        )
        for plain, given in stack
    ]
    runs: dict[str, Callable[[], None]] = {
        "network": lambda: run_network(model, x, sigma),
        "network, channels last": lambda: run_network(last, x_last, sigma),
        "stack": lambda: run_stack(stack),
        "stack, channels last": lambda: run_stack(stack_last),
    }
    seconds = alternate(runs, rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "what": f"DDPM++ CIFAR-10, forward and backward, batch {batch}, fp32, seconds of one thread",
        "machine": machine(),
        "convolutions": len(stack),
        "median": {name: round(value, 3) for name, value in median.items()},
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
        "network / stack": round(median["network"] / median["stack"], 3),
        "network, channels last / stack": round(median["network, channels last"] / median["stack"], 3),
        "share of the network's time": parts(runs["network"]),
        "share of the network's time, channels last": parts(runs["network, channels last"]),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
