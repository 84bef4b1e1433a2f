"""Whether a target of less variance copies more: the tables and the plot of docs/results/memorisation.md.

    python benchmarks/memorisation.py

From the records of other studies and experiments; nothing is trained. The ratio is the mean distance of
samples to the nearest training image over that of held-out images: below 1 they are nearer than new images
are. The gap is the distance to held-out images less that to training images.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from statistics import mean, stdev

from consistune.pages.plots import Axis, Plot
from consistune.system.files import write_atomically
from records import Row, read, read_curves
from tables import DOCS, KEYS, distances, each, fill, grouped, markdown

Measure = Callable[[list[Row], int], list[float]]
PAGE = "results/memorisation.md"
RUNS = {
    "ECT": ("one-sample", "c 0"),
    "SCT, adaptive norm": ("score-identity", "own, κ 1"),
    "SCT, adaptive norm, posterior's scatter": ("score-identity", "posterior, κ 1"),
}
"""Lines of the plot: estimator and norm in the study adaptive_norm_unlabelled, of eight points a run."""
CURVES = {
    "digits without labels, 1,500 steps": "digits-unconditional",
    "digits without labels, 3,000 steps": "digits-unconditional-long",
    "digits with labels, 1,500 steps": "digits",
    "mnist10k without labels": "mnist10k-unconditional",
}
"""Title → folder in docs/results of an experiment `convergence`, with ECT and plain SCT."""
PLAIN = {"ECT": ("ect", "c 0"), "SCT": ("sct", "c 0")}
PLAIN_RECIPE = {name: (*words, "recipe's", "recipe's") for name, words in PLAIN.items()}


def both(*rest: str) -> dict[str, tuple[str, ...]]:
    return {"ECT": ("ect", "one-sample", *rest), "SCT": ("ect", "score-identity", *rest)}


LABELS = ("recipe", "estimator", "norm", "rate")
OWN = "recipe's"
SETS: dict[str, tuple[str, tuple[str, ...], dict[str, tuple[str, ...]]]] = {
    "digits without labels": ("family_unlabelled", LABELS, both(OWN, "as with labels")),
    "digits with labels": ("family", LABELS, both(OWN, "5e-4")),
    "mnist10k with labels": ("mnist10k_family", LABELS, both(OWN, OWN)),
    "emoji in latents, split by group": ("emoji64_latents", ("run", "norm"), PLAIN),
    "CIFAR-10 as JPEG": ("cifar10_jpeg", ("run", "norm", "rate", "law"), PLAIN_RECIPE),
}
"""Title → study, its factors, and the words of ECT and SCT."""


def nearest(runs: list[Row], point: int) -> list[float]:
    return distances(runs, point, 1, "memorisation")


def gaps(runs: list[Row], point: int) -> list[float]:
    train, held_out = (distances(runs, point, 1, key) for key in KEYS)
    return [b - a for a, b in zip(train, held_out, strict=True)]


def lines() -> dict[str, list[Row]]:
    groups = grouped(read("adaptive_norm_unlabelled")["runs"], lambda run: (run["estimator"], run["norm"]))
    return {name: sorted(groups[words], key=itemgetter("seed")) for name, words in RUNS.items()}


def plot() -> str:
    series = {}
    for name, runs in lines().items():
        points = range(len(runs[0]["curve"]))
        ratios = [nearest(runs, point) for point in points]
        x = [mean(distances(runs, point, 1)) for point in points]
        series[name] = (x, [mean(values) for values in ratios], [stdev(values) for values in ratios])
    x, y = Axis("Fréchet distance to training images, %", log=True), Axis("nearest training image, ratio")
    return Plot(series, x, y, "Digits without labels, along 3,000 steps").svg()


def along(run: Row, measure: Measure) -> list[tuple[float, float]]:
    """(distance to training images, measure) at each point of a run's curve."""
    points = range(len(run["curve"]))
    return [(distances([run], point, 1)[0], measure([run], point)[0]) for point in points]


def at_equal_distance(run: Row, base: Row, measure: Measure) -> float:
    """The mean of what a run has more than the base at its distance, between the base's points.

    There the base's measure is taken as linear in the logarithm of the distance.
    """
    differences = []
    for distance, value in along(run, measure):
        for (x0, y0), (x1, y1) in pairwise(along(base, measure)):
            if min(x0, x1) <= distance <= max(x0, x1):
                share = math.log(distance / x0) / math.log(x1 / x0)
                differences.append(value - y0 - share * (y1 - y0))
                break
    return mean(differences)


def compared() -> str:
    """SCT's ratio and gap less ECT's where both have the same distance: the mean over each run, by seed."""
    (_, base), *others = lines().items()
    plain = {title: read_curves(folder) for title, folder in CURVES.items()}
    sets = [(title, "SCT", runs["SCT"], runs["ECT"]) for title, runs in plain.items()]
    sets += [("digits without labels, 3,000 steps", name, runs, base) for name, runs in others]
    rows = []
    for title, name, runs, ect in sets:
        cells = [
            [at_equal_distance(*pair, measure) for pair in zip(runs, ect, strict=True)]
            for measure in (nearest, gaps)
        ]
        rows.append([title, name, signed(cells[0], 3), signed(cells[1], 2)])
    return markdown(["set", "over ECT at equal distance", "ratio", "gap, %"], rows)


def signed(values: list[float], digits: int) -> str:
    shown = ", ".join(f"{value:+.{digits}f}" for value in values)
    return f"{mean(values):+.{digits}f} ({shown})"


def ends() -> str:
    """ECT's and SCT's ratios and gaps at the end of a run, by set."""
    rows = []
    for title, (study, labels, methods) in SETS.items():
        groups = grouped(read(study)["runs"], itemgetter(*labels))
        for method, words in methods.items():
            runs = sorted(groups[words], key=itemgetter("seed"))
            rows.append(
                [title, method, *(each(measure(runs, -1)) for measure in (first_step, nearest, gaps))]
            )
    return markdown(["set", "", "distance, 1 step", "nearest, ratio", "gap, %"], rows)


def first_step(runs: list[Row], point: int) -> list[float]:
    return distances(runs, point, 1)


def main() -> None:
    write_atomically(DOCS / "memorisation.svg", plot())
    fill(PAGE, "compared", compared())
    fill(PAGE, "ends", ends())


if __name__ == "__main__":
    main()
