"""The tables and plots of docs/digits.md, from benchmarks/results/digits_seeds.json.

    python benchmarks/digits_table.py

Fills the tables of docs/digits.md and draws docs/digits-search.svg and docs/digits-end.svg.
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from consistune.pages.plots import Axis, Plot
from consistune.system.files import write_atomically
from pages import DOCS, fill

RESULTS = Path(__file__).parent / "results" / "digits_seeds.json"
Group = dict[tuple[str, str], list[dict[str, Any]]]


def value(run: dict[str, Any], point: int, steps: int, measure: str = "frechet_train") -> float:
    return float(run["curve"][point][f"steps_{steps}"][measure])


def cell(runs: list[dict[str, Any]], point: int, steps: int, measure: str = "frechet_train") -> str:
    values = [value(run, point, steps, measure) for run in runs]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} ({', '.join(f'{v:.2f}' for v in values)})"


def table(groups: Group, first: str) -> list[str]:
    rows = [
        f"| {first} | target | 1 step, half-way | 1 step, end | 2 steps, end | 1 step, held-out, end |",
        "|---|---|---|---|---|---|",
    ]
    for (setting, estimator), runs in groups.items():
        cells = [
            cell(runs, 3, 1),
            cell(runs, -1, 1),
            cell(runs, -1, 2),
            cell(runs, -1, 1, "frechet_held_out"),
        ]
        rows.append(f"| {setting} | {estimator} | {' | '.join(cells)} |")
    return rows


def curves(groups: Group, steps: int, title: str) -> str:
    series = {}
    for (setting, estimator), runs in groups.items():
        images = [point["images"] / 1000 for point in runs[0]["curve"]]
        means = [mean(value(run, i, steps) for run in runs) for i in range(len(images))]
        series[f"{estimator}{setting}"] = (images, means)
    return Plot(series, Axis("thousand images seen"), Axis("Fréchet distance, %", log=True), title).svg()


def _rate(item: tuple[tuple[str, str], Any]) -> tuple[float, int]:
    (rate, estimator), _ = item
    return float(rate), ("one-sample", "batch", "class").index(estimator)


def main() -> None:
    search: Group = defaultdict(list)
    end: Group = defaultdict(list)
    for run in json.loads(RESULTS.read_text())["runs"]:
        setting = run["keys"][-1].partition("=")[2]
        (search if run["set"] == "search" else end)[setting, run["estimator"]].append(run)
    fill("digits.md", "search", "\n".join(table(dict(sorted(search.items(), key=_rate)), "rate")))
    fill("digits.md", "end", "\n".join(table(end, "cap on r/t")))
    middle = {("", name): runs for (rate, name), runs in search.items() if rate == "5e-4"}
    write_atomically(DOCS / "digits-search.svg", curves(middle, 1, "1 step, mean of three seeds"))
    ends = {(f", cap {cap}", name): runs for (cap, name), runs in end.items() if cap in ("1.0", "0.9375")}
    write_atomically(DOCS / "digits-end.svg", curves(ends, 1, "1 step, twice the budget"))


if __name__ == "__main__":
    main()
