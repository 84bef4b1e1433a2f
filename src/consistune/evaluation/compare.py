"""Several models measured alike, and one table of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from consistune.errors import UserError
from consistune.evaluation.job import Job
from consistune.evaluation.page import SHOWN
from consistune.evaluation.request import Request
from consistune.evaluation.setup import check_destinations
from consistune.pages.evaluation import comparison_page, verdict
from consistune.system.files import write_atomically
from consistune.system.processes import rank_and_count
from consistune.system.progress import Screen


def compare(request: Request, models: Sequence[Path], screen: Screen) -> Path:
    """Evaluate each model in a folder of its own in `request.out`, and write a page of all; returns the page.

    Every model is opened before the first is measured. The anchors are those of the first model.
    """
    if request.keep is not None:
        raise UserError("one file for several models", "--keep", "evaluate them one by one")
    check_destinations(request, models)
    jobs: dict[str, Job] = {}
    for name, path in zip(names(models), models, strict=True):
        own = replace(request, model=path, out=request.out / name, anchors=request.anchors and not jobs)
        jobs[name] = Job(own, screen)
    rows: list[dict[str, Any]] = []
    anchors: list[dict[str, Any]] = []
    pictures: dict[str, Tensor] = {}
    first = rank_and_count()[0] == 0
    for name, job in jobs.items():
        page = job.run()
        if not first:
            continue
        results = json.loads(page.with_name("results.json").read_text(encoding="utf-8"))
        for row in [*results["rows"], *results["anchors"]]:
            shown = {**row, "name": row["name"] if "kind" in row else f"{name}, {row['name']}"}
            (anchors if "kind" in row else rows).append(shown)
            start, last = row["seeds"][0]
            seeds = range(start, min(start + SHOWN, last + 1))
            pictures[shown["name"]] = job.sources[row["name"]](seeds)[0]
    page = request.out / "report.html"
    if first:
        compared = {"rows": rows, "anchors": anchors, "samples": request.samples}
        write_atomically(request.out / "results.json", json.dumps(compared, indent=1))
        write_atomically(page, comparison_page(compared, pictures))
        for line in verdict(compared)[: len(rows) + len(anchors)]:
            screen.say(line)
    return page


def names(models: Sequence[Path]) -> list[str]:
    """A short name for each: the last part of its path but "model", with a number where it repeats."""
    found: list[str] = []
    for path in models:
        resolved = path.resolve()
        last = resolved.stem if resolved.is_file() else resolved.name  # a folder's name may have a dot
        base = resolved.parent.name if last == "model" else last or "model"
        number, name = 1, base
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.append(name)
    return found
