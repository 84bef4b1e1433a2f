"""What the score identity adds to a training step, and what the published form of its target would cost.

    python benchmarks/score_identity.py [--only naive targets steps scaling] [--rounds 2]

steps      tuning DDPM++ CIFAR-10 (two forward passes, backward, RAdam) at batch 16 with the one-sample target
           (ECT), the score identity over the class's 5,000 references, and over all 50,000
targets    the score identity's targets alone, at batch 16 and 128
naive      the target from every difference [B, n, d], as stable targets were first published (STF,
           2302.00670), at 5,000 references and batch 128: time, and peak memory
scaling    the target alone as the references, the batch and the classes grow

CPU seconds of one thread; the answers are compared first.
"""

import os
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.objectives import Consistency
from consistune.core.posterior.integers import fast_bytes
from consistune.core.posterior.mean import Reference, dequantise, posterior
from consistune.core.times import LogNormalPairs, SigmoidGap
from consistune.core.types import Batch
from consistune.nn.presets import preset
from consistune.system.host import machine
from harness import Benchmark, Record, shown
from posterior import (
    QUERIES,
    Calls,
    classes_of,
    cpu_seconds,
    exact,
    peak_mib,
    pictures,
    queries,
    refuse_wrong,
    relative_error,
)
from tables import markdown

benchmark = Benchmark(__doc__)
STEP_BATCH, CLASSES, PER_CLASS = 16, 10, 5_000
ECT = "one-sample (ECT)"


def estimators(images: Tensor) -> dict[str, NoiseEstimator]:
    return {
        ECT: OneSample(),
        "score identity, the class's 5,000": ScoreIdentity(EDM(), classes_of(images, CLASSES)),
        "score identity, all 50,000": ScoreIdentity(EDM(), Reference.ungrouped(images)),
    }


def batch_of(images: Tensor, size: int) -> tuple[Batch, Tensor, Tensor]:
    x_t, t, rows = queries(images, size)
    return Batch(dequantise(images[rows]), rows * CLASSES // len(images), rows), x_t, t


def steps(images: Tensor, rounds: int, size: int = STEP_BATCH) -> Record:
    """Whole steps with each estimator: the same network, batch, times and noise."""
    model = preset("edm-cifar10-ddpmpp", dropout=0.2).requires_grad_(True)
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-4)
    batch, _, _ = batch_of(images, size)

    def unconditional(x_t: Tensor, t: Tensor, _: Tensor | None = None) -> Tensor:
        return model(x_t, t)  # the labels are the estimator's; the network has none

    def step(estimator: NoiseEstimator) -> None:
        objective = Consistency(EDM(), LogNormalPairs(SigmoidGap()), estimator)
        optimizer.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(0)
        objective(unconditional, unconditional, batch, 3_200_000, generator).mean().backward()
        optimizer.step()

    return cpu_seconds({name: partial(step, e) for name, e in estimators(images).items()}, rounds)


def targets(images: Tensor, rounds: int) -> Record:
    by_size = {}
    for size in (STEP_BATCH, QUERIES):
        batch, x_t, t = batch_of(images, size)
        calls = {name: partial(e.clean, x_t, t, batch) for name, e in estimators(images).items()}
        del calls[ECT]
        by_size[str(size)] = cpu_seconds(calls, 3 * rounds)
    return by_size


def scaling(images: Tensor, rounds: int) -> Record:
    """The target as the references grow, the batch at 5,000 references, and the classes of all references."""

    def target(size: int, count: int, classes: int = 1) -> Callable[[], object]:
        x_t, t, _ = queries(images, size)
        reference, group = classes_of(images[:count], classes), torch.arange(size) % classes
        return lambda: posterior(x_t, t, EDM(), reference, group).mean

    counts = (n for n in (1_250, 2_500, 5_000, 10_000, 20_000, 50_000) if n <= len(images))
    calls: dict[str, Calls] = {
        "references": {str(n): target(QUERIES, n) for n in counts},
        "batch": {str(size): target(size, PER_CLASS) for size in (16, 32, 64, 128, 256, 512)},
        "classes": {str(k): target(QUERIES, len(images), k) for k in (1, 2, 5, 10, 20, 50, 100)},
    }
    return {what: cpu_seconds(each, 3 * rounds) for what, each in calls.items()}


def naive_form(x_t: Tensor, t: Tensor, references: Tensor, rows: int) -> Tensor:
    """softmax(−‖x_t − x‖²/2t²)·x with every difference written out, `rows` queries at a time."""
    means = []
    for q, s in zip(x_t.flatten(1).split(rows), t.split(rows), strict=True):
        squares = (q[:, None] - references).square_().sum(2)
        means.append(torch.softmax(squares / (-2 * s.square())[:, None], dim=1) @ references)
    return torch.cat(means).view_as(x_t)


def naive(images: Tensor, rounds: int) -> Record:
    """Time and memory of the naive form, with all queries at once where the memory suffices, and of ours."""
    images = images[:PER_CLASS]
    reference, matrix = Reference.ungrouped(images), dequantise(images).flatten(1)
    x_t, t, _ = queries(images, QUERIES)
    needed = 1.05 * QUERIES * matrix.numel() * 4 / 1e9
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    rows = QUERIES if free > needed + 2 and needed < 10 else QUERIES // 4
    calls = {
        "naive": lambda: naive_form(x_t, t, matrix, rows),
        "streaming": lambda: posterior(x_t, t, EDM(), reference).mean,
    }
    few, means = slice(0, QUERIES, QUERIES // 8), dict[str, Tensor]()
    memory = {name: peak_mib(lambda n=name: means.setdefault(n, calls[n]())) for name in calls}
    truth = exact(x_t[few], t[few], images)
    errors = {name: relative_error(value[few], truth) for name, value in means.items()}
    refuse_wrong(errors, "streaming")
    seconds = cpu_seconds(calls, rounds)
    return {
        "queries at a time": rows,
        "relative_error": errors,
        "peak_extra_MB": memory,
        "seconds": seconds,
        "times faster": seconds["naive"]["median"] / seconds["streaming"]["median"],
        "times less memory": memory["naive"] / memory["streaming"],
    }


COST = {"naive": naive, "targets": targets, "steps": steps, "scaling": scaling}


def cost_tables(record: Record) -> str:
    base, rows = record["steps"][ECT]["median"], []
    for name, step in record["steps"].items():
        row = [name, shown(step, 2), f"{step['median'] / base:.3f}" if name != ECT else "1"]
        for size in (STEP_BATCH, QUERIES):  # eight steps of 16 cost the network what one of 128 would
            if name == ECT:
                row += ["—", "1"]
            else:
                seconds = record["targets"][str(size)][name]["median"]
                row += [f"{seconds:.3f}", f"{1 + seconds * STEP_BATCH / (base * size):.4f}"]
        rows.append(row)
    alone = [x for n in (STEP_BATCH, QUERIES) for x in (f"target alone at {n}, s", "(step + target)/step")]
    other = record["naive"]
    forms = [
        [name, shown(seconds), f"{other['peak_extra_MB'][name]:.0f}", f"{other['relative_error'][name]:.0e}"]
        for name, seconds in other["seconds"].items()
    ]
    about = (
        f"{other['times faster']:.0f} times faster in {other['times less memory']:.0f} times less memory "
        f"({other['queries at a time']} queries of the naive form at a time)."
    )
    first = markdown(["target", f"whole step at {STEP_BATCH}, s", "over ECT's", *alone], rows)
    return "\n".join([first, markdown(["form", "s", "extra memory, MB", "error"], forms), about])


def scaling_table(record: Record) -> str:
    """A row for each size, with its time over that of the size before."""
    fixed = {
        "references": f"{QUERIES} queries, one class",
        "batch": f"{PER_CLASS:,} references, one class",
        "classes": f"{CLASSES * PER_CLASS:,} references, {QUERIES} queries",
    }
    rows = []
    for what, times in record["scaling"].items():
        size, median = 0, 0.0
        for word, seconds in times.items():
            grown = [f"{int(word) / size:.1f}", f"{seconds['median'] / median:.2f}"] if size else ["", ""]
            rows.append([what, fixed[what], f"{int(word):,}", shown(seconds), *grown])
            size, median = int(word), seconds["median"]
    return markdown(["grows", "of", "to", "s", "size ×", "time ×"], rows)


@benchmark.section(
    "score_identity_cost.json", COST, rounds=2,
    tables={
        ("results/posterior-cost.md", "score identity cost"): cost_tables,
        ("results/posterior-cost.md", "score identity scaling"): scaling_table,
    },
)  # fmt: skip
def cost(given, part: str) -> Record:
    images = pictures(2_000 if given.quick else CLASSES * PER_CLASS)
    size = {"size": 1} if given.quick and part == "steps" else {}
    measured = COST[part](images, given.rounds, **size)
    return {
        "what": "DDPM++ CIFAR-10, fp32; CPU seconds of one thread: median, least, most",
        "rounds": given.rounds,
        "machine": machine(),
        "byte_products": fast_bytes(torch.device("cpu")),
        part: measured,
    }


if __name__ == "__main__":
    benchmark.main()
