"""What was aimed at and what was reached: the tables of docs/results/goals.md.

    python benchmarks/goals.py

From the records of studies and experiments; nothing is trained. A ratio is the mean distance to the training
images over ECT's on the same seeds, in brackets on each seed.
"""

from collections.abc import Iterable, Iterator
from operator import itemgetter
from statistics import mean
from typing import NamedTuple

from records import Row, read, read_curves
from tables import distances, fill, markdown, over

PAGE = "results/goals.md"
PLAIN = "recipe's"
NORMS = {
    PLAIN: "SCT, plain norm",
    "own": "SCT, adaptive norm, own",
    "posterior": "SCT, adaptive norm, posterior",
}

MEAN_FLOW = "MeanFlow with the score identity"


class Goal(NamedTuple):
    """The greatest ratios aimed at: in one step half-way and at the end, in two steps at the end."""

    half: float | None
    end: float
    two: float = 1.0


UNLABELLED, LABELLED, PICTURES, BEST = Goal(0.7, 0.8), Goal(None, 0.88), Goal(None, 0.9), Goal(None, 0.6)


class Line(NamedTuple):
    """A comparison: the runs of a method and ECT's, of the same seeds."""

    set: str
    method: str
    goal: Goal
    runs: list[Row]
    ect: list[Row]


def of(study: str, **words: str) -> list[Row]:
    """A study's runs with these words, in the order of their seeds."""
    runs = [run for run in read(study)["runs"] if words.items() <= run.items()]
    return sorted(runs, key=itemgetter("seed"))


def long_ect() -> list[Row]:
    """ECT with labels and 384,000 images."""
    return of("digits_levers", budget="long", estimator="one-sample", lever="none")


def family(study: str, norms: Iterable[str], name: str, goal: Goal, **words: str) -> Iterator[Line]:
    """SCT with each norm, of a study of the family; `words` of its other factors."""
    ect = of(study, recipe="ect", estimator="one-sample", norm=PLAIN, **words)
    for norm in norms:
        runs = of(study, recipe="ect", estimator="score-identity", norm=norm, **words)
        yield Line(name, NORMS[norm], goal, runs, ect)


def adaptive(study: str, name: str, goal: Goal, ect: list[Row]) -> Iterator[Line]:
    """SCT with the adaptive norm, of a study of it."""
    for norm in ("own", "posterior"):
        runs = of(study, estimator="score-identity", norm=f"{norm}, κ 1")
        yield Line(name, NORMS[norm], goal, runs, ect)


def pictures(study: str, name: str, goal: Goal, **words: str) -> Iterator[Line]:
    """SCT with both norms over ECT, of a study of pictures in colour; `words` of its other factors."""
    ect = of(study, run="ect", norm="c 0", **words)
    for word, norm in {"c 0": PLAIN, "own, κ 1": "own"}.items():
        yield Line(name, NORMS[norm], goal, of(study, run="sct", norm=word, **words), ect)


def sct() -> Iterator[Line]:
    both = (PLAIN, "own")
    name, runs = "digits without labels, 384,000 images", read_curves("digits-unconditional-long")
    yield Line(name, NORMS[PLAIN], UNLABELLED, runs["SCT"], runs["ECT"])
    ect = of("adaptive_norm_unlabelled", estimator="one-sample", norm="c 0")
    yield from adaptive("adaptive_norm_unlabelled", name, UNLABELLED, ect)
    name = "digits without labels, 192,000 images"
    yield from family("family_unlabelled", both, name, UNLABELLED, rate="as with labels")
    name, runs = (
        "digits with labels, 384,000 images",
        of("digits_levers", budget="long", estimator="class", lever="none"),
    )
    yield Line(name, NORMS[PLAIN], LABELLED, runs, long_ect())
    yield from adaptive("adaptive_norm_labelled", name, LABELLED, long_ect())
    yield from family("family", both, "digits with labels, 192,000 images", LABELLED, rate="5e-4")
    name, runs = "mnist10k without labels, 180,000 images", read_curves("mnist10k-unconditional")
    yield Line(name, NORMS[PLAIN], UNLABELLED, runs["SCT"], runs["ECT"])
    yield from family("mnist10k_unlabelled", both, "mnist10k without labels, 120,000 images", UNLABELLED)
    yield from family("mnist10k_family", both, "mnist10k with labels, 120,000 images", LABELLED, rate=PLAIN)
    yield from pictures("emoji64_latents", "emoji in latents, 35,000 images", LABELLED)
    yield from pictures("cifar10_jpeg", "CIFAR-10 as JPEG, 64,000 images", PICTURES, rate=PLAIN, law=PLAIN)


def best() -> Iterator[Line]:
    name, study = "digits without labels, 192,000 images", "family_unlabelled"
    runs = of(study, recipe="cmt-ect", estimator="score-identity", norm=PLAIN)
    ect = of(study, recipe="ect", estimator="one-sample", norm=PLAIN, rate="as with labels")
    yield Line(name, "`digits-unlabelled-best`: CMT, then SCT", BEST, runs, ect)
    runs = of("combination_long", rate="2e-4", estimator="score-identity")
    yield Line("digits with labels, 384,000 images", "`digits-best`: CMT, then SCT", BEST, runs, long_ect())
    name, study = "mnist10k without labels, 120,000 images", "mnist10k_unlabelled"
    ect = of(study, recipe="ect", estimator="one-sample")
    yield Line(name, NORMS["own"], BEST, of(study, recipe="ect", norm="own"), ect)
    name, ect = (
        "mnist10k with labels, 120,000 images",
        of("mnist10k_family", recipe="ect", estimator="one-sample", norm=PLAIN, rate=PLAIN),
    )
    runs = of("mnist10k_tcm", estimator="score-identity")
    yield Line(name, "`mnist10k-best`: ECT, then TCM with the score identity", BEST, runs, ect)
    runs = of("mnist10k_family", recipe="meanflow", estimator="score-identity", rate=PLAIN)
    yield Line(name, MEAN_FLOW, BEST, runs, ect)
    ect = of("emoji64_latents", run="ect", norm="c 0")
    runs = of("emoji64_family", run="meanflow", estimator="score-identity")
    yield Line("emoji in latents, 35,000 images", f"`emoji64-latent-best`: {MEAN_FLOW}", BEST, runs, ect)
    ect = of("cifar10_jpeg", run="ect", norm="c 0", rate=PLAIN, law=PLAIN)
    runs = of("cifar10_jpeg_family", run="meanflow", estimator="score-identity")
    yield Line("CIFAR-10 as JPEG, 64,000 images", f"`cifar10-jpeg-best`: {MEAN_FLOW}", BEST, runs, ect)


def table(lines: Iterable[Line], half: bool) -> str:
    rows = []
    for name, method, goal, runs, ect in lines:
        middle = len(runs[0]["curve"]) // 2 - 1
        shown = [over(runs, ect, middle, 1) if middle >= 0 else "–"] * half
        shown += [over(runs, ect, -1, steps) for steps in (1, 2)]
        rows.append([name, method, *shown, verdict(goal, runs, ect, middle)])
    return markdown(
        ["set", "over ECT", *["1 step, half-way"] * half, "1 step, end", "2 steps, end", "goal"], rows
    )


def verdict(goal: Goal, runs: list[Row], ect: list[Row], middle: int) -> str:
    """Which of the goals the means miss."""
    asked = [("half-way", goal.half, middle, 1), ("1 step", goal.end, -1, 1), ("2 steps", goal.two, -1, 2)]
    missed = [
        f"{name} ≤ {most:g}"
        for name, most, point, steps in asked
        if most is not None
        and mean(distances(runs, point, steps)) > most * mean(distances(ect, point, steps))
    ]
    return f"missed: {', '.join(missed)}" if missed else "reached"


TABLES = {"sct": lambda: table(sct(), half=True), "best": lambda: table(best(), half=False)}

if __name__ == "__main__":
    for name, made in TABLES.items():
        fill(PAGE, name, made())
