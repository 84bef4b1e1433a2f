"""What the score-identity target adds to a training step, and what the published form of it would cost.

    python benchmarks/score_identity_cost.py [--rounds 2] [--part naive|targets|steps|scaling]

Step: one whole step of tuning DDPM++ CIFAR-10 (two forward passes, backward, RAdam), with the one-sample
target (ECT), the score identity over the classes' 5 000 references, and over all 50 000; in turns. Then
the targets alone, at the step's batch and at 128, where a whole step takes minutes here; the ratio
(step + target)/step at 128 takes eight steps of 16 for the network, which is what they cost it.

Naive: the target from every pairwise difference [B, n, d], as stable targets were first published (STF,
2302.00670), at 5 000 references of 3×32×32 and batch 128: time, and peak memory above what is held.

Scaling: the target alone as the references, the batch and the classes grow, each by itself.

One thread; correctness first; CPU seconds of the process. A part alone is measured anew, the others
kept. Writes results/score_identity_cost.json and the tables in docs/methods.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.core.times import LogNormal, LogNormalPairs, SigmoidGap
from consistune.core.types import Batch
from consistune.nn.presets import preset
from consistune.system.host import machine
from pages import fill
from posterior_mean import dequantise64, peak_memory, pictures, relative_error

RESULT = Path(__file__).parent / "results" / "score_identity_cost.json"
CLASSES, PER_CLASS, BATCH, STEP_BATCH = 10, 5_000, 128, 16
FEWEST_FREE_GB = 10.0
REFERENCES = (1_250, 2_500, 5_000, 10_000, 20_000, 50_000)
BATCHES = (16, 32, 64, 128, 256, 512)
CLASS_COUNTS = (1, 2, 5, 10, 20, 50, 100)


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def in_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of each call, in turns; the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: spread(values) for name, values in seconds.items()}


def batch_of(images: Tensor, size: int) -> tuple[Batch, Tensor, Tensor]:
    """Training images with their classes, and the noisy ones at times from ECT's law."""
    g = torch.Generator().manual_seed(3)
    rows = torch.randint(len(images), (size,), generator=g)
    batch = Batch(dequantise(images[rows]), rows // PER_CLASS, rows)
    t = LogNormal(low=0.002, high=80.0).sample(size, g)
    return batch, EDM().diffuse(batch.x_0, torch.randn(batch.x_0.shape, generator=g), t), t


def estimators(images: Tensor) -> dict[str, NoiseEstimator]:
    offsets = tuple(range(0, len(images) + 1, PER_CLASS))
    return {
        "one-sample (ECT)": OneSample(),
        "score identity, the class's 5,000": ScoreIdentity(EDM(), Reference(images, offsets)),
        "score identity, all 50,000": ScoreIdentity(EDM(), Reference.ungrouped(images)),
    }


def steps(images: Tensor, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a whole step for each estimator: the same network, batch, times and noise."""
    model = preset("edm-cifar10-ddpmpp", dropout=0.2).requires_grad_(True)
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-4)
    batch, _, _ = batch_of(images, STEP_BATCH)

    def step(estimator: NoiseEstimator) -> None:
        objective = Consistency(EDM(), LogNormalPairs(SigmoidGap()), estimator)
        optimizer.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(0)

        def unlabelled(x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            del condition  # for the estimator: the network has no labels
            return model(x_t, t)

        objective(unlabelled, unlabelled, batch, 3_200_000, generator).mean().backward()
        optimizer.step()

    return in_turns({name: lambda e=e: step(e) for name, e in estimators(images).items()}, rounds)


def targets(images: Tensor, size: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of the target alone at a batch of `size`."""
    batch, x_t, t = batch_of(images, size)
    found = {n: e for n, e in estimators(images).items() if isinstance(e, ScoreIdentity)}
    return in_turns({name: lambda e=e: e.clean(x_t, t, batch) for name, e in found.items()}, repeats)


def scaling(images: Tensor, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of the target: n references for 128 queries, 5,000 for B, and 50,000 in K classes for 128."""

    def seconds(size: int, count: int, classes: int = 1) -> Callable[[], object]:
        _, x_t, t = batch_of(images, size)
        reference = Reference(images[:count], tuple(range(0, count + 1, count // classes)))
        group = torch.arange(size) % classes
        return lambda: posterior(x_t, t, EDM(), reference, group).mean

    found = {
        "references": {str(n): seconds(BATCH, n) for n in REFERENCES},
        "batch": {str(size): seconds(size, PER_CLASS) for size in BATCHES},
        "classes": {str(k): seconds(BATCH, len(images), k) for k in CLASS_COUNTS},
    }
    return {what: in_turns(calls, repeats) for what, calls in found.items()}


def naive(x_t: Tensor, t: Tensor, references: Tensor, rows: int) -> Tensor:
    """softmax(−‖x_t − x‖²/2t²)·x with every difference written out, `rows` queries at a time."""
    means = []
    for q, s in zip(x_t.flatten(1).split(rows), t.split(rows), strict=True):
        squares = (q[:, None] - references).square_().sum(2)
        means.append(torch.softmax(squares / (-2 * s.square())[:, None], dim=1) @ references)
    return torch.cat(means).view_as(x_t)


def exact(x_t: Tensor, t: Tensor, images: Tensor) -> Tensor:
    """The same in float64, a query at a time."""
    x = dequantise64(images).flatten(1)
    means = []
    for q, s in zip(x_t.double().flatten(1), t.double(), strict=True):
        means.append(torch.softmax((x - q).square_().sum(1) / (-2 * s * s), 0) @ x)
    return torch.stack(means).view_as(x_t)


def against_naive(images: Tensor, repeats: int) -> dict[str, object]:
    """Time and memory of both forms at the same queries; the naive one whole where memory allows."""
    images = images[:PER_CLASS]
    whole, matrix = Reference.ungrouped(images), dequantise(images).flatten(1)
    _, x_t, t = batch_of(images, BATCH)
    needed = 1.05 * BATCH * matrix.numel() * 4 / 1e9
    rows = BATCH if available_gb() > needed + 2 and needed < FEWEST_FREE_GB else BATCH // 4
    calls: dict[str, Callable[[], Tensor]] = {
        "naive": lambda: naive(x_t, t, matrix, rows),
        "streaming": lambda: posterior(x_t, t, EDM(), whole).mean,
    }
    few = slice(0, BATCH, BATCH // 8)
    truth = exact(x_t[few], t[few], images)
    found: dict[str, Tensor] = {}
    memory = {name: peak_memory(lambda n=name: found.setdefault(n, calls[n]())) for name in calls}
    errors = {name: relative_error(mean[few], truth) for name, mean in found.items()}
    if errors["streaming"] > 1e-5:
        raise SystemExit(f"the target is wrong: relative error {errors['streaming']:.1e}")
    seconds = in_turns(calls, repeats)
    return {
        "queries at a time": rows,
        "relative_error": errors,
        "peak_extra_MB": memory,
        "seconds": seconds,
        "times faster": seconds["naive"]["median"] / seconds["streaming"]["median"],
        "times less memory": memory["naive"] / memory["streaming"],
    }


def available_gb() -> float:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024 / 1e9


def tables(result: dict) -> str:
    """Two tables in Markdown."""
    ect = "one-sample (ECT)"
    base = result["steps"][ect]["median"]
    lines = [
        f"| target | whole step at {STEP_BATCH}, s | over ECT's | target alone at {STEP_BATCH}, s "
        f"| (step + target)/step | target alone at {BATCH}, s | (step + target)/step |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, step in result["steps"].items():
        row = [name, f"{step['median']:.2f} ({step['least']:.2f} … {step['most']:.2f})"]
        if name == ect:
            row += ["1", "—", "1", "—", "1"]
        else:
            row += [f"{step['median'] / base:.3f}"]
            for size, of in ((STEP_BATCH, base), (BATCH, base * BATCH / STEP_BATCH)):
                seconds = result["targets"][str(size)][name]["median"]
                row += [f"{seconds:.3f}", f"{1 + seconds / of:.4f}"]
        lines.append("| " + " | ".join(row) + " |")
    other = result["naive"]
    lines += ["", "| form | s | extra memory, MB | error |", "|---|---|---|---|"]
    for name in ("naive", "streaming"):
        seconds = other["seconds"][name]
        lines.append(
            f"| {name} | {seconds['median']:.3f} ({seconds['least']:.3f} … {seconds['most']:.3f}) "
            f"| {other['peak_extra_MB'][name]:.0f} | {other['relative_error'][name]:.0e} |"
        )
    lines.append(
        f"\n{other['times faster']:.0f} times faster in {other['times less memory']:.0f} times less memory "
        f"({other['queries at a time']} queries of the naive form at a time)."
    )
    return "\n".join(lines)


def scaling_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """One table in Markdown: a row a size, and its time over the one before it."""
    fixed = {
        "references": f"{BATCH} queries, one class",
        "batch": f"{PER_CLASS:,} references, one class",
        "classes": f"{CLASSES * PER_CLASS:,} references, {BATCH} queries",
    }
    lines = ["| grows | of | to | s | size × | time × |", "|---|---|---|---|---|---|"]
    for what, times in found.items():
        before: tuple[int, float] | None = None
        for size, seconds in times.items():
            now = int(size), seconds["median"]
            grown = "| | " if before is None else f"| {now[0] / before[0]:.1f} | {now[1] / before[1]:.2f} "
            spread = f"{now[1]:.3f} ({seconds['least']:.3f} … {seconds['most']:.3f})"
            lines.append(f"| {what} | {fixed[what]} | {now[0]:,} | {spread} {grown}|")
            before = now
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--part", choices=["naive", "targets", "steps", "scaling"])
    rounds, part = vars(parser.parse_args()).values()
    torch.set_num_threads(1)
    images = pictures(CLASSES * PER_CLASS)
    parts: dict[str, Callable[[], object]] = {
        "naive": lambda: against_naive(images, rounds),
        "targets": lambda: {str(size): targets(images, size, 3 * rounds) for size in (STEP_BATCH, BATCH)},
        "steps": lambda: steps(images, rounds),
        "scaling": lambda: scaling(images, 3 * rounds),
    }
    result = json.loads(RESULT.read_text()) if part else {}
    result |= {
        "what": "DDPM++ CIFAR-10, fp32; CPU seconds of one thread: median, least, most",
        "rounds": rounds,
        "machine": machine(),
        "byte_products": torch.cpu._is_vnni_supported(),
    }
    for name in [part] if part else parts:
        result[name] = parts[name]()
        print(json.dumps(result[name]), flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    if result.keys() >= parts.keys():
        fill("methods.md", "score identity cost", tables(result))
        fill("methods.md", "score identity scaling", scaling_table(result["scaling"]))


if __name__ == "__main__":
    main()
