"""The page of one evaluation: measures, training curves, samples, and those samples that look suspicious."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from consistune.pages.page import MISSING, Cell, Picture, Table, render
from consistune.pages.pictures import grid_png
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
SHARES = {"precision", "recall", "copies", "near_copies", "accuracy"}
REMARKS = {"error": "± ", "deviation": "sd ", "bias": "bias +"}
"""NAME_error, NAME_deviation and NAME_bias are remarks in the cell of the measure NAME."""
CAPTIONS = {
    "samples": "The first seeds",
    "worst": "Farthest from real features: each sample, and below it the nearest training image",
    "memorised": "Nearest to a training image: each sample, and below it that image",
}
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
    return render(
        "evaluation.html",
        results=results,
        measures=_table(results["rows"]),
        search=results["search"] and search_plot(results["search"]),
        galleries={name: _gallery(images_of) for name, images_of in pictures.items()},
        training=list(_training_plots(curves)),
        command=shlex.join(results["environment"]["command"]),
    )


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
    summaries = [row["summary"] for row in rows]
    measures = dict.fromkeys(n for summary in summaries for n in summary if not _is_remark(n, summary))
    return Table(
        ["Measure", *(row["name"] for row in rows)],
        [[Cell(_label(name)), *(_cell(name, summary) for summary in summaries)] for name in measures],
    )


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
        Picture(CAPTIONS[kind], grid_png(images) if kind == "samples" else _pairs_png(images))
        for kind, images in images_of.items()
        if len(images) > 0
    ]


def _pairs_png(images: Tensor, columns: int = 8) -> bytes:
    """Pairs [2n, C, H, W] → rows of samples, each with the row of their training images below it."""
    samples, neighbours = images[0::2], images[1::2]
    columns = min(columns, len(samples))
    rows = [slice(start, start + columns) for start in range(0, len(samples), columns)]
    return grid_png(torch.cat([part[row] for row in rows for part in (samples, neighbours)]), columns)
