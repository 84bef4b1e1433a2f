"""The pictures and curves of an evaluation's page: samples are drawn again from their seeds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.metrics.choose import Split
from consistune.metrics.suite import SampleSource
from consistune.pages.evaluation import evaluation_page, search_plot
from consistune.system.files import write_atomically
from consistune.training.metrics_file import EVALUATION, MetricsFile

SHOWN = 64
"""The number of samples shown of each row."""


def write_page(
    path: Path,
    results: dict[str, Any],
    draws: Mapping[str, SampleSource],
    data: Split | None,
    run: Path | None,
) -> None:
    """Write the page, and a search's curve as curve.svg and curve.png beside it."""
    pictures = {
        row["name"]: _pictures(row, draws[row["name"]], data)
        for row in [*results["rows"], *results["anchors"]]
    }
    write_atomically(path, evaluation_page(results, pictures, _curves(run)))
    if results["search"] is not None:
        plot = search_plot(results["search"])
        plot.write_svg(path.with_name("curve.svg"))
        write_atomically(path.with_name("curve.png"), plot.png())


def _pictures(row: dict[str, Any], draw: SampleSource, data: Split | None) -> dict[str, Tensor]:
    """The first samples of a row and, with training data, the suspicious ones with their neighbours."""
    first, last = row["seeds"][0]
    pictures = {"samples": draw(range(first, min(first + SHOWN, last + 1)))[0]}
    if data is None:
        return pictures
    block = row["blocks"][0]
    for kind in ("worst", "memorised"):
        if block[kind]:
            seeds, rows = zip(*block[kind], strict=True)
            neighbours = data.train.images[torch.tensor(rows)]
            pictures[kind] = torch.stack([draw(seeds)[0], neighbours], 1).flatten(0, 1)
    return pictures


def _curves(run: Path | None) -> dict[str, tuple[list[float], list[float]]]:
    """Loss and evaluations of the run that the model is part of: name → (thousand images seen, value)."""
    if run is None:
        return {}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for record in MetricsFile(run).records():
        for name, value in record.items():
            if name == "loss" or name.startswith(EVALUATION):
                xs, ys = curves.setdefault(name, ([], []))
                xs.append(record["images"] / 1000)
                ys.append(value)
    return curves
