"""The curves of the docs on the digits, from the JSON in benchmarks/results.

    python benchmarks/figures.py

Error bars are one standard deviation over the seeds.
"""

from statistics import mean, stdev

from consistune.pages.plots import Axis, Plot
from consistune.system.files import write_atomically
from records import Row, read
from tables import DOCS, Groups, digits_groups, distances, grouped


def curves(groups: dict[str, list[Row]], steps: int, title: str) -> str:
    """Mean distance ± one deviation over seeds against images seen, as SVG; a line for each group."""
    series = {}
    for name, runs in groups.items():
        points = range(len(runs[0]["curve"]))
        values = [distances(runs, point, steps) for point in points]
        images = [runs[0]["curve"][point]["images"] / 1000 for point in points]
        series[name] = (images, [mean(each) for each in values], [stdev(each) for each in values])
    return Plot(series, Axis("thousand images seen"), Axis("Fréchet distance, %", log=True), title).svg()


def search() -> str:
    groups: Groups = digits_groups("search")
    return curves({target: runs for (rate, target), runs in groups.items() if rate == "5e-4"}, 1, "1 step")


def end() -> str:
    groups = {f"{target}, cap {cap}": runs for (cap, target), runs in digits_groups("end").items()}
    return curves(groups, 1, "1 step, twice the budget")


def end_of_schedule() -> str:
    plain = grouped(
        read("digits_levers")["runs"], lambda run: (run["budget"], run["estimator"], run["lever"])
    )
    adaptive = grouped(read("adaptive_norm_labelled")["runs"], lambda run: run["norm"])
    groups = {
        "ECT": plain["long", "one-sample", "none"],
        "SCT, plain norm": plain["long", "class", "none"],
        "SCT, adaptive norm, own": adaptive["own, κ 1"],
        "SCT, adaptive norm, posterior": adaptive["posterior, κ 1"],
    }
    return curves(groups, 2, "2 steps, digits with labels")


FIGURES = {"digits-search": search, "digits-end": end, "end-of-schedule": end_of_schedule}


def main() -> None:
    for name, figure in FIGURES.items():
        write_atomically(DOCS / f"{name}.svg", figure())


if __name__ == "__main__":
    main()
