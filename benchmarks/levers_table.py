"""The tables of docs/levers.md, from digits_levers.json, digits_seeds.json and bootstrap_error.json.

python benchmarks/levers_table.py
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pages import fill

RESULTS = Path(__file__).parent / "results"
Run = dict[str, Any]
SEEDS = 3


def averages(run: Run) -> dict[str, list[dict[str, Any]]]:
    """The curve of each decay, the fastest first."""
    return {run["average"]: run["curve"], **run["slower"]}


def cell(runs: list[Run], decay: str, point: int, steps: int) -> str:
    """Mean over seeds of the distance to training images, to held-out ones behind it."""
    found = [averages(run)[decay][point][f"steps_{steps}"] for run in runs]
    train, held_out = (mean(f[key] for f in found) for key in ("frechet_train", "frechet_held_out"))
    return f"{train:.2f} ({held_out:.2f})"


def levers(runs: list[Run]) -> str:
    lines = [
        "| images | lever | target | average | seeds | 1 step, half-way | 1 step, end | 2 steps, end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["budget"], run["lever"], run["estimator"]), []).append(run)
    order = {"short": 0, "long": 1}
    for (_, lever, estimator), members in sorted(
        groups.items(), key=lambda item: (order[item[0][0]], item[0][1] != "none", item[0][1:])
    ):
        images = f"{members[0]['curve'][-1]['images']:,}"
        for decay in averages(members[0]):
            cells = (cell(members, decay, *at) for at in ((3, 1), (-1, 1), (-1, 2)))
            start = f"| {images} | {lever} | {estimator} | {decay} | {len(members)} | "
            lines.append(f"{start}{' | '.join(cells)} |")
    return "\n".join(lines)


def seeds(levers: list[Run], plain: list[Run]) -> str:
    """What has more than one seed: mean ± deviation, and its mean over one-sample's of the same seeds."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in plain:
        budget = "long" if run["set"] == "end" else "short"
        if run["keys"][0] == "optimizer.lr=5e-4" and run["keys"][-1] != "pairs.gap.max_ratio=0.9375":
            groups.setdefault((budget, run["estimator"]), []).append(run)
    for run in levers:
        if run["lever"] != "none":
            groups.setdefault((run["budget"], f"{run['estimator']}, {run['lever']}"), []).append(run)
    lines = [
        "| images | target | seeds | 1 step, half-way | over ECT's (held-out) | 1 step, end "
        "| over ECT's (held-out) | 2 steps, end | over ECT's (held-out) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (budget, name), runs in sorted(groups.items(), key=lambda item: (item[0][0] != "short", item[0][1])):
        if len(runs) > 1:
            same = {run["seed"] for run in runs}
            base = [run for run in groups[budget, "one-sample"] if run["seed"] in same]
            cells = (against(runs, base, *at) for at in ((3, 1), (-1, 1), (-1, 2)))
            images = f"{runs[0]['curve'][-1]['images']:,}"
            lines.append(f"| {images} | {name} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def both(levers: list[Run], plain: list[Run]) -> str:
    """What both targets can have, at 384,000 images on all seeds: the two side by side, and their ratio."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in plain:
        if run["set"] == "end" and run["estimator"] in ("one-sample", "class"):
            capped = run["keys"][-1] == "pairs.gap.max_ratio=0.9375"
            groups.setdefault(("cap 15/16" if capped else "none", run["estimator"]), []).append(run)
    for run in levers:
        if run["budget"] == "long" and run["lever"] != "none":
            groups.setdefault((run["lever"], run["estimator"]), []).append(run)
    lines = [
        "| lever | 1 step, half-way: ECT, SCT | ratio (held-out) | 1 step, end: ECT, SCT | ratio (held-out) "
        "| 2 steps, end: ECT, SCT | ratio (held-out) |",
        "|---|---|---|---|---|---|---|",
    ]
    for lever in dict.fromkeys(lever for lever, _ in groups):
        ect, sct = groups.get((lever, "one-sample"), []), groups.get((lever, "class"), [])
        if len(ect) == len(sct) == SEEDS:
            cells = []
            for at in ((3, 1), (-1, 1), (-1, 2)):
                ours, ratio = against(sct, ect, *at).split(" | ")
                theirs, _ = against(ect, ect, *at).split(" | ")
                cells.append(f"{theirs}, {ours} | {ratio}")
            lines.append(f"| {lever} | {' | '.join(cells)} |")
    return "\n".join(lines)


def against(runs: list[Run], base: list[Run], point: int, steps: int) -> str:
    keys = ("frechet_train", "frechet_held_out")
    ours, theirs = (
        [[run["curve"][point][f"steps_{steps}"][key] for run in some] for key in keys]
        for some in (runs, base)
    )
    train, held_out = (mean(a) / mean(b) for a, b in zip(ours, theirs, strict=True))
    return f"{mean(ours[0]):.2f} ± {stdev(ours[0]):.2f} | {train:.2f} ({held_out:.2f})"


def parts(models: list[dict[str, Any]], gap: float) -> str:
    """The TD error's parts at one gap, for every run and stage."""
    shown = [row["t"] for row in models[0]["rows"] if row["gap"] == gap]
    lines = [
        f"| run | after stage | | {' | '.join(f't = {t:g}' for t in shown)} |",
        f"|---|---|---|{'---|' * len(shown)}",
    ]
    for model in models:
        rows = [row for row in model["rows"] if row["gap"] == gap]
        for part in ("own", "euler", "noise"):
            values = " | ".join(f"{1000 * row[part]:.2f}" for row in rows)
            lines.append(f"| {model['run']} | {model['stage']} | {part} | {values} |")
    return "\n".join(lines)


def ends(models: list[dict[str, Any]]) -> str:
    """Distance to the exact end of the trajectory, along t."""
    first = models[0]["rows"][0]["gap"]
    shown = [row["t"] for row in models[0]["rows"] if row["gap"] == first]
    lines = [
        f"| run | after stage | {' | '.join(f't = {t:g}' for t in shown)} |",
        f"|---|---|{'---|' * len(shown)}",
    ]
    for model in models:
        values = " | ".join(f"{row['end']:.3f}" for row in model["rows"] if row["gap"] == first)
        lines.append(f"| {model['run']} | {model['stage']} | {values} |")
    return "\n".join(lines)


def main() -> None:
    read = {
        name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("digits_levers", "digits_seeds")
    }
    fill("levers.md", "levers", levers(read["digits_levers"]["runs"]))
    fill("levers.md", "seeds", seeds(read["digits_levers"]["runs"], read["digits_seeds"]["runs"]))
    fill("levers.md", "both", both(read["digits_levers"]["runs"], read["digits_seeds"]["runs"]))
    models = json.loads((RESULTS / "bootstrap_error.json").read_text())["models"]
    fill("levers.md", "parts", parts(models, 1 / 64))
    fill("levers.md", "ends", ends(models))


if __name__ == "__main__":
    main()
