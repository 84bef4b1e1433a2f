"""The measured tables of the docs, from the JSON in benchmarks/results.

    python benchmarks/tables.py                   all of them
    python benchmarks/tables.py digits.md results/levers-tables.md

Each table stands between `<!-- begin NAME -->` and `<!-- end NAME -->` of a page and is replaced whole.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import yaml

from consistune.system.files import write_atomically
from records import Row, read

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
EARLIER = {"sct": "consistune"}
GIB, SHARE = 2**30, "share of the plain loop's"
KEYS = ("frechet_train", "frechet_held_out")
ENDS = ((3, 1), (-1, 1), (-1, 2))
"""(point, steps): one step half-way, one step at the end, two steps at the end."""
Groups = dict[tuple[str, str], list[Row]]


def fill(page: str, name: str, text: str) -> None:
    """Replace the text between the comments of NAME. Raises ValueError where docs/PAGE has no such place."""
    path = DOCS / page
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- begin {name} -->\n")
    _, end, after = rest.partition(f"<!-- end {name} -->")
    if not begin or not end:
        raise ValueError(f"{path} has no place for {name}")
    write_atomically(path, before + begin + text.rstrip("\n") + "\n" + end + after)


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; a cell may hold several cells, with " | " between them."""
    shown = [f"| {' | '.join(head)} |".replace("|  |", "| |"), "|" + "---|" * len(head)]
    return "\n".join([*shown, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]) + "\n"


def span(ratio: dict[str, float]) -> str:
    """A ratio with the least and the greatest of its rounds."""
    return f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})"


def least_to_greatest(values: Sequence[float]) -> str:
    return f"({min(values):.2f} to {max(values):.2f})"


def grouped(runs: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return dict(groups)


def override(run: Row, name: str) -> str | None:
    """The value that a run's overrides give to a key; None where they do not set it."""
    values = [value for key, _, value in (each.partition("=") for each in run["keys"]) if key == name]
    return values[-1] if values else None


def distances(runs: Iterable[Row], point: int, steps: int, key: str = KEYS[0]) -> list[float]:
    """Of every run, at a point of its curve."""
    return [float(run["curve"][point][f"steps_{steps}"][key]) for run in runs]


def each(values: Sequence[float]) -> str:
    """Mean ± deviation (each value)."""
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} ({', '.join(f'{value:.2f}' for value in values)})"


def ratio(runs: list[Row], base: list[Row], point: int, steps: int) -> str:
    """Mean over the mean of `base`: of the distance to training images (to held-out images)."""
    train, held_out = (
        mean(distances(runs, point, steps, key)) / mean(distances(base, point, steps, key)) for key in KEYS
    )
    return f"{train:.2f} ({held_out:.2f})"


def over(runs: list[Row], base: list[Row], point: int, steps: int) -> str:
    """The mean distance over that of `base` (and of each pair, which share a seed)."""
    ours, theirs = (distances(each, point, steps) for each in (runs, base))
    by_seed = ", ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs, strict=True))
    return f"{mean(ours) / mean(theirs):.2f} ({by_seed})"


def of_groups(labels: Sequence[str], groups: Sequence[tuple[Any, list[Row]]]) -> str:
    """A line for each group of runs: distances half-way, at the end, and to held-out images."""
    half = max(len(runs[0]["curve"]) for _, runs in groups) // 2 - 1
    shown: dict[str, tuple[Any, ...]] = {"1 step, half-way": (half, 1)} if half >= 0 else {}
    shown |= {"1 step, end": (-1, 1), "2 steps, end": (-1, 2), "1 step, held-out, end": (-1, 1, KEYS[1])}
    rows = [[*group, *(each(distances(runs, *at)) for at in shown.values())] for group, runs in groups]
    return markdown([*labels, *shown], rows)


def of_study(name: str, *factors: str) -> str:
    """The table of a study, by these factors or all, whose words come in the order of its file."""
    words = yaml.safe_load((HERE / "studies" / f"{name}.yaml").read_text("utf-8"))["factors"]
    factors = factors or tuple(words)
    groups = grouped(read(name)["runs"], lambda run: tuple(run[factor] for factor in factors))
    orders = [list(words[factor]) for factor in factors]
    ranked = sorted(groups, key=lambda group: [o.index(word) for o, word in zip(orders, group, strict=True)])
    return of_groups(factors, [(group, sorted(groups[group], key=itemgetter("seed"))) for group in ranked])


def digits_groups(name: str) -> Groups:
    """The runs of a set of digits_seeds, by rate (search) or cap (end) and target."""
    key = {"search": "optimizer.lr", "end": "pairs.gap.max_ratio"}[name]
    runs = [run for run in read("digits_seeds")["runs"] if run["set"] == name]
    return grouped(runs, lambda run: (override(run, key), run["estimator"]))


def digits_table(name: str) -> str:
    groups = list(digits_groups(name).items())
    if name == "search":
        groups.sort(key=lambda item: (float(item[0][0]), ("one-sample", "batch", "class").index(item[0][1])))
    return of_groups(["rate" if name == "search" else "cap on r/t", "target"], groups)


def methods() -> str:
    seeds = {target: runs for (rate, target), runs in digits_groups("search").items() if rate == "5e-4"}
    results = read("methods_digits")
    by_method = {"ect": seeds["one-sample"], "sct": seeds["class"]}
    by_method |= grouped(results["runs"], lambda run: run["method"])
    order = [*by_method][:2] + [m for m in results["step_ratios"] if m not in ("ect", "sct")]
    rows = []
    for method in order:
        runs, ratios = by_method[method], results["step_ratios"][method]
        cells = [
            each(distances(runs, -1, steps, key)) for steps, key in ((1, KEYS[0]), (2, KEYS[0]), (1, KEYS[1]))
        ]
        rows.append([f"`digits-{method}`", *cells, f"{median(ratios):.2f} {least_to_greatest(ratios)}"])
    return markdown(["recipe", "1 step", "2 steps", "1 step, held-out", "an iteration, over ECT's"], rows)


def mnist10k() -> str:
    results = read("mnist10k")
    runs, real = results["runs"], results["held_out"]
    if isinstance(runs, list):  # as benchmarks/digits.py writes them
        runs = {run["run"]: run | {"measures": run["ends"]} for run in runs}
    rows = []
    for name, run in runs.items():
        for steps, measures in run["measures"].items():
            start = [f"`mnist10k-{name}`", f"{run['images']:,}", f"{run['seconds'] / 60:.1f} min"]
            evaluations = 2 * int(steps) - 1 if name == "edm" else steps
            rows.append([*start, evaluations, f"{_frechet(measures):.2f}", f"{measures['accuracy']:.1%}"])
    head = ["run", "images", "training, one core", "evaluations", "Fréchet distance", "accuracy"]
    return markdown(head, rows) + (
        "\nOne run each, seed 0. Distances in % of the training images' variance of features, a classifier's "
        f"of the same digits, {results['samples']:,} samples; {real['images']} held-out real digits: "
        f"{_frechet(real):.2f}. The classifier has {real['accuracy']:.1%} of those right."
    )


def _frechet(measures: Row) -> float:
    return float(measures.get("frechet", measures.get(KEYS[0])))


def levers() -> str:
    order = {"short": 0, "long": 1}
    groups = grouped(
        read("digits_levers")["runs"],
        lambda run: (order[run["budget"]], run["lever"] != "none", run["lever"], run["estimator"]),
    )
    rows = []
    for (_, _, lever, estimator), runs in sorted(groups.items()):
        for average in (runs[0]["average"], *runs[0]["slower"]):
            curves = [run if average == run["average"] else {"curve": run["slower"][average]} for run in runs]
            cells = [
                f"{mean(distances(curves, *at)):.2f} ({mean(distances(curves, *at, KEYS[1])):.2f})"
                for at in ENDS
            ]
            images = f"{runs[0]['curve'][-1]['images']:,}"
            rows.append([images, lever, estimator, average, len(runs), *cells])
    head = ["images", "lever", "target", "average", "seeds"]
    return markdown([*head, "1 step, half-way", "1 step, end", "2 steps, end"], rows)


def lever_seeds() -> str:
    """What has more than one seed: mean ± deviation, and its mean over one-sample's of the same seeds."""
    groups: Groups = defaultdict(list)
    for run in read("digits_seeds")["runs"]:
        if override(run, "optimizer.lr") == "5e-4" and override(run, "pairs.gap.max_ratio") != "0.9375":
            groups["long" if run["set"] == "end" else "short", run["estimator"]].append(run)
    for run in read("digits_levers")["runs"]:
        if run["lever"] != "none":
            groups[run["budget"], f"{run['estimator']}, {run['lever']}"].append(run)
    rows = []
    for (budget, name), runs in sorted(groups.items(), key=lambda item: (item[0][0] != "short", item[0][1])):
        if len(runs) > 1:
            seeds = {run["seed"] for run in runs}
            base = [run for run in groups[budget, "one-sample"] if run["seed"] in seeds]
            cells = [f"{_deviation(runs, *at)} | {ratio(runs, base, *at)}" for at in ENDS]
            rows.append([f"{runs[0]['curve'][-1]['images']:,}", name, len(runs), *cells])
    over = "over ECT's (held-out)"
    head = ["images", "target", "seeds", "1 step, half-way", over, "1 step, end", over, "2 steps, end", over]
    return markdown(head, rows)


def lever_pairs() -> str:
    """Levers that both targets can have, at 384,000 images on all seeds: both means, and their ratio."""
    groups: Groups = defaultdict(list)
    for run in read("digits_seeds")["runs"]:
        if run["set"] == "end":
            cap = override(run, "pairs.gap.max_ratio") == "0.9375"
            groups["cap 15/16" if cap else "none", run["estimator"]].append(run)
    for run in read("digits_levers")["runs"]:
        if run["budget"] == "long" and run["lever"] != "none":
            groups[run["lever"], run["estimator"]].append(run)
    rows = []
    for lever in dict.fromkeys(lever for lever, _ in groups):
        ect, sct = groups.get((lever, "one-sample"), []), groups.get((lever, "class"), [])
        if len(ect) == len(sct) == 3:
            cells = [
                f"{_deviation(ect, *at)}, {_deviation(sct, *at)} | {ratio(sct, ect, *at)}" for at in ENDS
            ]
            rows.append([lever, *cells])
    head = ["lever"]
    for at in ("1 step, half-way", "1 step, end", "2 steps, end"):
        head += [f"{at}: ECT, SCT", "ratio (held-out)"]
    return markdown(head, rows)


def _deviation(runs: list[Row], point: int, steps: int) -> str:
    values = distances(runs, point, steps)
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def error_parts(gap: float = 1 / 64) -> str:
    """The parts of the TD error at one gap, for every run and stage."""
    models = read("bootstrap_error")["models"]
    rows = []
    for model in models:
        at_gap = [row for row in model["rows"] if row["gap"] == gap]
        rows += [
            [model["run"], model["stage"], part, *(f"{1000 * row[part]:.2f}" for row in at_gap)]
            for part in ("own", "euler", "noise")
        ]
    return markdown(["run", "after stage", "", *(f"t = {row['t']:g}" for row in at_gap)], rows)


def error_ends() -> str:
    """Distance to the exact end of the trajectory, along t."""
    models = read("bootstrap_error")["models"]
    rows = []
    for model in models:
        first = [row for row in model["rows"] if row["gap"] == model["rows"][0]["gap"]]
        rows.append([model["run"], model["stage"], *(f"{row['end']:.3f}" for row in first)])
    return markdown(["run", "after stage", *(f"t = {row['t']:g}" for row in first)], rows)


def training_steps() -> str:
    rows = []
    for key, entry in read("training_step").items():
        if not key.startswith("step "):
            continue
        for name, timing in entry["times"].items():
            plain = name == "plain"
            faster = "1" if plain else span(entry["times as fast"][name])
            error = "" if plain else f"{entry['errors'][name]['gradient']:.0e}"
            network = f"{key.removeprefix('step ')}, batch {entry['batch']}"
            word = "plain, fp32" if plain else name
            rows.append([network, word, f"{timing['images a second']:.2f}", faster, error])
    head = ["network", "precision", "images a second", "times as fast as plain", "gradient's error"]
    return markdown(head, rows)


def step_levers() -> str:
    entry = read("training_step")["levers"]
    rows = []
    for part, label in (("steps", "whole step"), ("passes", "two passes and a backward, fp32")):
        first = next(iter(entry[part]))
        for name, timing in entry[part].items():
            seconds = timing["seconds"]
            times = [a / b for a, b in zip(entry[part][first]["seconds"], seconds, strict=True)]
            faster = {"median": median(times), "low": min(times), "high": max(times)}
            cells = f"{timing['median']:.2f} {least_to_greatest(seconds)}"
            rows.append([label, name, cells, "1" if name == first else span(faster)])
    return markdown([f"DDPM++, batch {entry['batch']}, one thread", "", "seconds", "times as fast"], rows)


def memory() -> str:
    rows = []
    for key, entry in read("training_step").items():
        if not key.startswith("memory "):
            continue
        both = entry["forms"], entry["forms, freed memory given back"]
        for form in both[0]["bytes"]:
            cells = [f"{x['bytes'][form] / GIB:.2f} GiB | {x[SHARE].get(form, 1.0):.2f}" for x in both]
            kept = f"{entry['kept'][form] / GIB:.2f} GiB"
            rows.append([key.removeprefix("memory "), form, kept, *cells])
    head = ["network", "", "kept by the forward pass", "peak", "share of plain's", "freed memory given back"]
    return markdown([*head, "share of plain's"], rows)


def sampling() -> str:
    rows = []
    for threads, result in sorted(read("sampling").items(), reverse=True):
        for batch, entry in result["batches"].items():
            for name, timing in entry["times"].items():
                faster = entry["times as fast as the peer"].get(name)
                speed = [f"{timing['images a second']:.2f}", f"{timing['median'] * 1000:.0f} ms"]
                rows.append(
                    [f"{threads.split()[0]}, {batch}", name, *speed, "1" if faster is None else span(faster)]
                )
    sizes = [
        f"{name}: {size['parameters'] / 1e6:.1f} million parameters, {size['flops'] / 1e9:.1f} GFLOP an image"
        for name, size in result["sizes"].items()
    ]
    off = [f"{name} {value:.0f}" for name, value in result["pixel levels off"].items()]
    head = ["threads, batch", "", "images a second", "latency", "times as fast as diffusers"]
    return markdown(head, rows) + (
        f"\n{'; '.join(sizes)}. Levels of 255 from fp32's images (99th percentile): {', '.join(off)}."
    )


def startup() -> str:
    result = read("startup")
    rows = []
    for name, timing in result["times"].items():
        # Recorded under the package's earlier name.
        imports = {EARLIER.get(package, package): took for package, took in result["imports"][name].items()}
        parts = [f"{package} {took:.2f}" for package, took in imports.items()]
        seconds = f"{timing['median']:.2f} {least_to_greatest(timing['seconds'])}"
        rows.append([f"`{name.replace('sct ', 'consistune ', 1)}`", seconds, ", ".join(parts)])
    return markdown(["", "seconds", "of it, imports"], rows)


def kill_and_resume() -> str:
    """What tests/attack/test_kill.py recorded."""
    result = read("kill_and_resume")
    writing = {word: n for word, n in result["interrupted_while_writing"].items() if word != "nothing"}
    places = ", ".join(f"{word} {n}" for word, n in writing.items())
    compared = " and ".join(str(n) for n in result["tensors_compared_a_run"].values())
    return (
        f"{result['kills']} kills with SIGKILL at random moments of {len(result['runs'])} runs, "
        f"{sum(writing.values())} of them while a file was half-written ({places}). The finished runs and "
        f"the unbroken ones, {compared} tensors, their pictures and every line of their logs: "
        f"**{len(result['differences'])} differences.**\n"
    )


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "digits.md": {"search": lambda: digits_table("search"), "end": lambda: digits_table("end")},
    "continuous.md": {"own": lambda: of_study("own_scatter")},
    "results/cifar10-jpeg.md": {
        "cifar10": lambda: of_study("cifar10_jpeg"),
        "family": lambda: of_study("cifar10_jpeg_family"),
    },
    "results/emoji64-latents.md": {
        "emoji64": lambda: of_study("emoji64_latents"),
        "longer": lambda: of_study("emoji64_longer"),
        "family": lambda: of_study("emoji64_family"),
    },
    "results/combinations.md": {
        "combination": lambda: of_study("combination"),
        "long": lambda: of_study("combination_long", "estimator", "rate"),
        "unlabelled": lambda: of_study("family_unlabelled"),
    },
    "results/methods-compared.md": {
        "digits": methods,
        "family": lambda: of_study("family"),
    },
    "results/mnist10k.md": {
        "mnist10k": mnist10k,
        "family": lambda: of_study("mnist10k_family"),
        "unlabelled": lambda: of_study("mnist10k_unlabelled"),
        "tcm": lambda: of_study("mnist10k_tcm"),
    },
    "results/time-law.md": {"law": lambda: of_study("time_law")},
    "results/levers-tables.md": {
        "levers": levers,
        "seeds": lever_seeds,
        "both": lever_pairs,
        "parts": error_parts,
        "ends": error_ends,
    },
    "performance.md": {"step": training_steps, "sampling": sampling, "startup": startup},
    "results/precision.md": {"precision": lambda: of_study("precision")},
    "results/performance-details.md": {"levers": step_levers, "memory": memory},
    "long-runs.md": {"kill_and_resume": kill_and_resume},
}

if __name__ == "__main__":
    for page in sys.argv[1:] or TABLES:
        for name, table in TABLES[page].items():
            fill(page, name, table())
