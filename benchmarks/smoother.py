"""What a smoother schedule changes for ECT and for SCT: the table of docs/results/smoother-schedule.md.

    python benchmarks/smoother.py

From the record digits_levers; nothing is trained.
"""

from operator import itemgetter
from statistics import mean

from records import Row, read
from tables import distances, fill, grouped, markdown

PAGE, LEVER = "results/smoother-schedule.md", "8 stages a halving"
POINTS = {"half-way": 3, "end": -1}
METHODS = {"ECT": "one-sample", "SCT": "class"}


def table() -> str:
    """Distances with eight stages a halving over those of the same method with one: of the means, by seed."""
    groups = grouped(read("digits_levers")["runs"], itemgetter("budget", "estimator", "lever"))
    known = {key: sorted(runs, key=itemgetter("seed")) for key, runs in groups.items()}
    rows = []
    for method, estimator in METHODS.items():
        pair = known["long", estimator, LEVER], known["long", estimator, "none"]
        rows.append([method, *(over(*pair, point, n) for n in (1, 2) for point in POINTS.values())])
    return markdown(["", *(f"{n}, {point}" for n in ("1 step", "2 steps") for point in POINTS)], rows)


def over(runs: list[Row], base: list[Row], point: int, steps: int) -> str:
    ours, theirs = (distances(each, point, steps) for each in (runs, base))
    by_seed = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))
    return f"{mean(ours) / mean(theirs):.2f} ({by_seed})"


if __name__ == "__main__":
    fill(PAGE, "smoother", table())
