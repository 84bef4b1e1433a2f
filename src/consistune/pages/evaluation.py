"""The page of one evaluation: measures, training curves, samples, and those samples that look suspicious."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from consistune.pages.page import MISSING, Cell, Picture, Table, render
from consistune.pages.pictures import grid_png, in_pairs
from consistune.pages.plots import STYLES, Axis, Plot

LABELS = {
    "kid": "Kernel distance (KID)",
    "is": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
    "novelty": "Novelty, pixels",
    "novelty_features": "Novelty, features",
    "copies": "Copies",
    "near_copies": "Near copies",
    "accuracy": "Accuracy",
    "frechet_train": "Fréchet distance to training images, % of their variance",
    "frechet_held_out": "Fréchet distance to held-out images, % of their variance",
    "memorisation": "Novelty, pixels",
    "loss": "Loss",
}
COLUMNS = 8
"""Of a sheet of samples."""
SHARES = {"precision", "recall", "copies", "near_copies", "accuracy"}
REMARKS = {"error": "± ", "deviation": "sd ", "bias": "bias +"}
"""NAME_error, NAME_deviation and NAME_bias are remarks in the cell of the measure NAME."""
CAPTIONS = {
    "worst": "Farthest from real features: each sample, and below it the nearest training image",
    "memorised": "Nearest to a training image: each sample, and below it that image",
}
REAL, TEACHER, FORCED = "real images, held out", "teacher", "teacher before tuning"
"""The kinds of anchors: rows of results.json beside the model's own."""
Curve = tuple[list[float], list[float]]


def evaluation_page(
    results: dict[str, Any], pictures: Mapping[str, Mapping[str, Tensor]], curves: Mapping[str, Curve]
) -> str:
    """The page of an evaluation.

    Args:
        results: what results.json holds.
        pictures: row → {"samples", "worst", "memorised"} → uint8 images [n, C, H, W]; the latter two are
            pairs, sample and training image in turn.
        curves: name → (thousand images seen, value) of the training run, where the model is part of one.
    """
    rows = [*results["rows"], *results.get("anchors", [])]
    samples = {name: images["samples"] for name, images in pictures.items() if "samples" in images}
    anchors = {row["name"] for row in results.get("anchors", [])}
    suspicious = {name: images for name, images in pictures.items() if name not in anchors}
    return render(
        "evaluation.html",
        results=results,
        speed_up=speed_up(results),
        verdict=verdict(results)[len(rows) :],  # the lines before it are in the table
        real=any(row["kind"] == REAL for row in results.get("anchors", [])),
        measures=_table(rows),
        search=results["search"] and search_plot(results["search"]),
        samples=[Picture(name, grid_png(images, COLUMNS)) for name, images in samples.items()],
        galleries={name: _gallery(images_of) for name, images_of in suspicious.items()},
        training=list(_training_plots(curves)),
        command=shlex.join(results["environment"]["command"]),
    )


def comparison_page(results: dict[str, Any], samples: Mapping[str, Tensor]) -> str:
    """The page of several models: a row of the table each. samples: row → uint8 images [n, C, H, W]."""
    rows = [*results["rows"], *results["anchors"]]
    measures = _measures(rows)
    cells = [[Cell(row["name"]), *(_cell(name, row["summary"]) for name in measures)] for row in rows]
    return render(
        "comparison.html",
        results=results,
        title=", ".join(row["name"] for row in results["rows"]),
        measures=Table(["Model", *map(_label, measures)], cells),
        samples=[Picture(name, grid_png(images, COLUMNS)) for name, images in samples.items()],
    )


def verdict(results: dict[str, Any]) -> list[str]:
    """What the first Fréchet distance means, a line for each row and anchor, and one that compares them."""
    rows = [*results["rows"], *results.get("anchors", [])]
    measure = next((name for name in rows[0]["summary"] if name.startswith(("fid", "fd-"))), None)
    if measure is None:
        return []
    values = {row["name"]: row["summary"][measure]["mean"] for row in rows if measure in row["summary"]}
    lines = [f"{name}: {measure} {value:.4g}" for name, value in values.items()]
    good, bad = (
        next((values[row["name"]] for row in results.get("anchors", []) if row["kind"] == kind), None)
        for kind in (TEACHER, FORCED)
    )
    own = values[rows[0]["name"]]
    if good is not None and bad is not None and bad > good:
        share = (bad - own) / (bad - good)
        way = f"from the teacher in one step ({bad:.4g}) to the teacher in all its steps ({good:.4g})"
        worse = f"the model is no better than the teacher in one step ({bad:.4g}): look at its training"
        lines.append(f"tuning has gone {share:.0%} of the way {way}" if share > 0 else worse)
    return lines


def speed_up(results: dict[str, Any]) -> dict[str, float] | None:
    """Evaluations, and images a second while sampling, of the first row and its teacher; None: no teacher."""
    teacher = next((row for row in results.get("anchors", []) if row["kind"] == TEACHER), None)
    own = results["rows"][0]
    if teacher is None or "evaluations" not in own["sampler"]:
        return None
    rates = []
    for row in (own, teacher):
        count = sum(last - first + 1 for first, last in row["seeds"])
        rates.append(count / max(sum(block["seconds"]["sampling"] for block in row["blocks"]), 1e-9))
    return {
        "own_evaluations": own["sampler"]["evaluations"],
        "teacher_evaluations": teacher["sampler"]["evaluations"],
        "own_rate": rates[0],
        "teacher_rate": rates[1],
        "times": rates[0] / rates[1],
    }


def search_plot(search: dict[str, Any]) -> Plot:
    """The metric against the setting of the sampler that was searched for."""
    points = search["curve"]
    series = {search["metric"]: ([p["value"] for p in points], [p["distance"] for p in points])}
    x = Axis(search["setting"], log=search["setting"] == "mid-t")
    return Plot(series, x, Axis(search["metric"]), f"{search['samples']:,} samples, the same seeds")


def _label(measure: str) -> str:
    if measure.endswith("_infinity"):
        return f"{_label(measure.removesuffix('_infinity'))}, extrapolated to N = ∞"
    for prefix, name in (("fd-", "Fréchet distance"), ("kd-", "Kernel distance")):
        if measure.startswith(prefix):
            return f"{name} ({measure})"
    return LABELS.get(measure, measure)


def _table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        ["Measure", *(row["name"] for row in rows)],
        [[Cell(_label(name)), *(_cell(name, row["summary"]) for row in rows)] for name in _measures(rows)],
    )


def _measures(rows: list[dict[str, Any]]) -> list[str]:
    summaries = [row["summary"] for row in rows]
    return list(dict.fromkeys(n for summary in summaries for n in summary if not _is_remark(n, summary)))


def _is_remark(name: str, summary: Mapping[str, Any]) -> bool:
    measure, _, end = name.rpartition("_")
    return end in REMARKS and measure in summary


def _cell(measure: str, summary: Mapping[str, Any]) -> Cell:
    if measure not in summary:
        return Cell(MISSING)
    value = summary[measure]
    text, remarks = _number(measure, value["mean"]), []
    if value["standard_error"] is not None:
        text += f" ± {_number(measure, value['standard_error'])}"
        if measure.startswith(("fid", "fd-")):
            remarks.append(f"(min {_number(measure, value['min'])})")
    for end, sign in REMARKS.items():
        # Several blocks show the error themselves; that of a single one is its NAME_error.
        repeated = end == "error" and value["standard_error"] is not None
        if f"{measure}_{end}" in summary and not repeated:
            remarks.append(f"({sign}{_number(measure, summary[f'{measure}_{end}']['mean'])})")
    return Cell(text, remarks)


def _number(measure: str, value: float) -> str:
    return f"{value:.1%}" if measure in SHARES else f"{value:.4g}"


def _training_plots(curves: Mapping[str, Curve]) -> Iterator[Plot]:
    """One plot a measure, with a line for each sampler; more plots where the line styles run out."""
    by_measure: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():  # evaluate/SAMPLER/MEASURE, evaluate/MEASURE or loss
        sampler, _, measure = name.removeprefix("evaluate/").rpartition("/")
        by_measure.setdefault(measure, {})[sampler.replace("_", " ") or measure] = curve
    for measure, series in by_measure.items():
        lines = list(series.items())
        for start in range(0, len(lines), len(STYLES)):
            part = dict(lines[start : start + len(STYLES)])
            yield Plot(part, Axis("thousand images seen"), Axis(""), _label(measure))


def _gallery(images_of: Mapping[str, Tensor]) -> list[Picture]:
    return [
        Picture(CAPTIONS[kind], _pairs_png(images))
        for kind, images in images_of.items()
        if kind in CAPTIONS and len(images) > 0
    ]


def _pairs_png(images: Tensor) -> bytes:
    """Pairs [2n, C, H, W] → rows of samples, each with the row of their training images below it."""
    columns = min(COLUMNS, len(images) // 2)
    return grid_png(in_pairs(images[0::2], images[1::2], columns), columns)
