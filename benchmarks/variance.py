"""The error of the target by noise level and reference, on image sets: docs/results/target-variance.md.

    consistune data prepare mnist10k.zip FOLDER/mnist10k --held-out 0.1           and so on for each set
    python benchmarks/variance.py --sets FOLDER [--only digits …]   half an hour of one core, CIFAR-10 most

The training set is the data, so the exact posterior mean E[x_0 | x_t] is known: with labels the score
identity over the class's images, without them over all images. An estimate x̂_0 has the error
E(x̂_0 − E[x_0 | x_t])², the mean over images and elements: its variance and its squared bias. References
of every class leave the label out, so theirs is bias. Times are EDM's t. Three draws of images and noise,
256 at each level.
Figures: docs/target-variance.svg (one image's error on every set), and of those in DRAWN
docs/target-variance-SET.svg (what is left of it, without labels).
"""

import time
from argparse import Namespace
from itertools import pairwise
from math import log
from pathlib import Path
from statistics import NormalDist, mean, stdev
from typing import Any

from consistune.analyze.measures import ROUNDING, target_variance
from consistune.analyze.worlds import Empirical
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity
from consistune.core.noise import EDM
from consistune.data.images import ImageSet, digits, load_data
from consistune.pages.plots import Axis, Plot
from consistune.recipe import read_recipe
from consistune.system.host import machine
from harness import RESULTS, Benchmark, Record
from tables import DOCS, markdown

RECIPES = {
    "digits": "digits-ect",
    "mnist10k": "mnist10k-ect",
    "emoji64-latent": "emoji64-latent-ect",
    "tiny-imagenet-20": "imagenet64-ect-s",
    "cifar10-jpeg": "cifar10-jpeg-ect",
}
"""Set → the recipe whose law of times counts there."""
LEVELS = (0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 80.0)
SIZES = (128, 1_000, 10_000)
DRAWN = ("digits", "cifar10-jpeg")
SHOWN = (2.0, 5.0, 20.0, 80.0)
SEEDS = (0, 1, 2)
QUERIES = 256
BATCH = 128
LEAST = 0.01
"""Of the data's variance: one image's error from which a table counts it."""
benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--sets", type=Path, help="the folder of the prepared sets")


def estimators_of(data: ImageSet, labels: bool) -> dict[str, NoiseEstimator]:
    """One image, the batch's, and random ones in number; with labels of the class, and all of every class."""
    reference = data.reference(by_class=labels)
    smallest = min(last - first for first, last in pairwise(reference.offsets))
    sizes = [size for size in SIZES if size < smallest]
    drawn = {str(size): ScoreIdentity(EDM(), reference, size=size) for size in sizes}
    mixed = {"every class": ScoreIdentity(EDM(), data.reference(by_class=False))} if labels else {}
    return {"one image": OneSample(), "batch": ScoreIdentity(EDM()), **drawn, **mixed}


def measured(data: ImageSet, labels: bool, queries: int) -> list[Record]:
    """Of each level and reference: the error of every draw, and its ratio to one image's."""
    world = Empirical(data.values(), data.labels if labels else None, EDM())
    estimators = estimators_of(data, labels)
    draws = [
        target_variance(world, estimators, LEVELS, batch_size=BATCH, queries=queries, seed=seed)
        for seed in SEEDS
    ]
    return [
        {
            "labels": labels,
            "t": rows[0].t,
            "reference": rows[0].estimator,
            "error": [float(f"{row.error:.4g}") for row in rows],
            "left": [float(f"{row.relative:.4g}") for row in rows],
        }
        for rows in zip(*draws, strict=True)
    ]


def target_variance_table(record: Record) -> str:
    """How much of one image's error each reference leaves, at SHOWN levels."""
    rows = []
    for name, found in record.items():
        for labels in (False, True):
            of = [row for row in found["rows"] if row["labels"] == labels]
            for reference in dict.fromkeys(row["reference"] for row in of):
                if reference != "one image":
                    at = {row["t"]: row for row in of if row["reference"] == reference}
                    rows.append([name, "yes" if labels else "no", reference, *(left(at[t]) for t in SHOWN)])
    return markdown(["set", "labels", "references", *(f"t = {t:g}" for t in SHOWN)], rows)


def left(row: Record) -> str:
    """Mean ± deviation over draws; a dash where one image has no error either."""
    if not scatters(row):
        return "–"
    return f"{mean(row['left']):.2f} ± {stdev(row['left']):.2f}"


def scatters(row: Record) -> bool:
    """Whether its reference's error, or one image's, can be told from rounding."""
    return max(row["error"]) > ROUNDING or mean(row["left"]) < 1


def one_image(found: Record, labels: bool) -> list[Record]:
    return [row for row in found["rows"] if row["labels"] == labels and row["reference"] == "one image"]


def where_table(record: Record) -> str:
    """From which level one image scatters, and which share of ECT's times lies above."""
    rows = []
    for name, found in record.items():
        law = read_recipe(RECIPES[name]).pairs.model_dump()
        for labels in (False, True):
            first = crossing(one_image(found, labels), LEAST * found["variance"])
            share = 1 - NormalDist(law["mean"], law["std"]).cdf(log(first))
            least, most = found["class"] if labels else (found["images"], found["images"])
            size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
            rows.append([name, "yes" if labels else "no", size, f"{first:.2g}", f"{share:.0%}"])
    return markdown(
        [
            "set",
            "labels",
            "images to choose from",
            "1 % of the variance from t =",
            "share of ECT's times above",
        ],
        rows,
    )


def crossing(rows: list[Record], level: float) -> float:
    """The t at which the error first passes the level, by log-linear interpolation between the measured t."""
    points = [(row["t"], max(mean(row["error"]), 1e-30)) for row in rows]
    for (before, low), (after, high) in pairwise(points):
        if low < level <= high:
            share = (log(level) - log(low)) / (log(high) - log(low))
            return float(before * (after / before) ** share)
    raise ValueError("one image's error passes the level nowhere between the measured times")


def draw_figures(record: Record) -> None:
    for name in [name for name in DRAWN if name in record]:
        series: dict[str, Any] = {}
        for row in record[name]["rows"]:
            if not row["labels"] and scatters(row):
                xs, ys, errors = series.setdefault(row["reference"], ([], [], []))
                xs.append(row["t"])
                ys.append(mean(row["left"]))
                errors.append(stdev(row["left"]))
        title = f"{name}, without labels: error of the target"
        plot = Plot(series, Axis("t", log=True), Axis("over one image's"), title)
        plot.write_svg(DOCS / f"target-variance-{name}.svg")
    series = {}
    for name, found in record.items():
        rows = [row for row in one_image(found, labels=False) if scatters(row)]
        errors = [[each / found["variance"] for each in row["error"]] for row in rows]
        series[name] = ([row["t"] for row in rows], list(map(mean, errors)), list(map(stdev, errors)))
    title = "Error of one image as the target, without labels"
    plot = Plot(series, Axis("t", log=True), Axis("over the data's variance"), title)
    plot.write_svg(DOCS / "target-variance.svg")


@benchmark.section(
    "target_variance.json",
    RECIPES,
    tables={
        ("results/target-variance.md", "left"): target_variance_table,
        ("results/target-variance.md", "where"): where_table,
    },
)
def target_variance_by_set(given: Namespace, part: str) -> Record:
    data = (digits() if part == "digits" else load_data(str(given.sets / part))).train
    start, queries = time.perf_counter(), BATCH if given.quick else QUERIES
    rows = [row for labels in (False, True) for row in measured(data, labels, queries)]
    sizes = data.labels.bincount()
    found = {
        "images": len(data),
        "class": [int(sizes.min()), int(sizes.max())],
        "variance": float(data.values().var(0, correction=0).mean()),
        "queries": queries,
        "seconds": round(time.perf_counter() - start),
        "machine": machine(),
        "rows": rows,
    }
    if given.out == RESULTS:
        draw_figures(given.record | {part: found})
    return {part: found}


if __name__ == "__main__":
    benchmark.main()
