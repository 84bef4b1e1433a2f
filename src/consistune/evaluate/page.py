"""The pictures and curves of an evaluation's page: samples are drawn again from their seeds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consistune.metrics.choose import Split
from consistune.metrics.suite import SampleSource
from consistune.pages.evaluation import evaluation_page, search_plot, search_series
from consistune.pages.plots import lines_png
from consistune.system.files import write_atomically

GRID = 64


def write_page(
    path: Path,
    results: dict[str, Any],
    draws: Mapping[str, SampleSource],
    data: Split | None,
    run: Path | None,
) -> None:
    """Write the page, and a search's curve as curve.svg and curve.png beside it."""
    pictures = {row["name"]: _pictures(row, draws[row["name"]], data) for row in results["rows"]}
    write_atomically(path, evaluation_page(results, pictures, _curves(run)))
    if results["search"] is not None:
        head = '<svg xmlns="http://www.w3.org/2000/svg"'
        svg = search_plot(results["search"])
        svg = svg if "xmlns=" in svg.split(">", 1)[0] else svg.replace("<svg", head, 1)
        write_atomically(path.with_name("curve.svg"), svg)
        write_atomically(path.with_name("curve.png"), lines_png(*search_series(results["search"])))


def _pictures(row: dict[str, Any], draw: SampleSource, data: Split | None) -> dict[str, Tensor]:
    first, last = row["seeds"][0]
    shown = {"samples": draw(range(first, min(first + GRID, last + 1)))[0]}
    if data is None:
        return shown
    block = row["blocks"][0]
    for kind in ("worst", "memorised"):
        if block[kind]:
            seeds, rows = zip(*block[kind], strict=True)
            neighbours = data.train.images[torch.tensor(rows)]
            shown[kind] = torch.stack([draw(seeds)[0], neighbours], 1).flatten(0, 1)
    return shown


def _curves(run: Path | None) -> dict[str, tuple[list[float], list[float]]]:
    """Loss and evaluations of the run that the model lies in: name → (thousand images, value)."""
    if run is None:
        return {}
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a run that is still going may be writing its last line
        for name, value in record.items():
            if name == "loss" or name.startswith("evaluate/"):
                xs, ys = curves.setdefault(name, ([], []))
                xs.append(record["images"] / 1000)
                ys.append(value)
    return curves
