"""What a smoother schedule changes for ECT and for SCT: the table of docs/results/smoother-schedule.md.

    python benchmarks/smoother.py

From the record digits_levers; nothing is trained.
"""

from operator import itemgetter

from records import read
from tables import fill, grouped, markdown, over

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


if __name__ == "__main__":
    fill(PAGE, "smoother", table())
