"""The records in benchmarks/results: read, and for studies added to.

A study's record has a line for each run. There a curve's points stand as columns, and numbers have five
digits: a distance of 5,000 samples has an error of about one percent. The curves of slower averages have
the first one's images.
"""

import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from consistune.system.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
DIGITS = 5
Row = dict[str, Any]


class Refused(ValueError):
    """What was asked of a study or its record cannot be done: shown as one line, with exit status 2."""


def read(name: str) -> Any:
    """A record by its name; curves are lists of points."""
    return _expanded(json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))


def read_curves(folder: str) -> dict[str, list[Row]]:
    """Run → its curve on each seed, of the experiment `convergence` in a folder of docs/results."""
    path = RESULTS.parents[1] / "docs" / "results" / folder / "convergence" / "data.csv"
    found: dict[str, dict[str, dict[str, Row]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            curve = found.setdefault(line["run"], {}).setdefault(line["seed"], {})
            measures = {
                key: float(line[key]) for key in ("frechet_train", "frechet_held_out", "memorisation")
            }
            point = curve.setdefault(line["images"], {"images": int(line["images"])})
            point[line["sampler"].replace("=", "_")] = measures
    return {
        name: [{"seed": int(seed), "curve": list(seeds[seed].values())} for seed in sorted(seeds)]
        for name, seeds in found.items()
    }


def read_record(path: Path) -> Row:
    """A study's results so far. Raises Refused for those of an earlier form."""
    results: Row = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    if not isinstance(results.get("runs"), list):
        raise Refused(f"{path} has an earlier form, in which no run is known: move it away first")
    return _expanded(results)


def record(path: Path, *runs: Row, **entries: Any) -> Row:
    """Add runs to a study's results, and set entries; returns all of them, as they are now.

    Several programs may do so at once. Raises Refused for a record of an earlier form, which would be lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(path.parent):
        return _recorded(path, runs, entries)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other program records in the folder meanwhile."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _recorded(path: Path, runs: Iterable[Row], entries: Row) -> Row:
    results = read_record(path)
    results |= entries | {"runs": [*results["runs"], *runs]}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in results.items() if key != "runs"]
    made = ",\n".join(f"  {json.dumps(_packed(run), separators=(',', ':'))}" for run in results["runs"])
    write_atomically(path, "{\n" + ",\n".join([*lines, f' "runs": [\n{made}\n ]']) + "\n}\n")
    return read_record(path)


def _packed(run: Row) -> Row:
    packed = run | {"curve": _columns(run["curve"])}
    if "slower" in run:
        packed["slower"] = {
            decay: _columns([{k: v for k, v in point.items() if k != "images"} for point in curve])
            for decay, curve in run["slower"].items()
        }
    return dict(_rounded(packed))


def _expanded(results: Any) -> Any:
    """The same with curves as lists of points."""
    runs = results.get("runs") if isinstance(results, dict) else None
    for run in runs if isinstance(runs, list) else ():
        columns = run.get("curve")
        if not isinstance(columns, dict):
            continue
        run["curve"] = _points(columns)
        if "slower" in run:
            images = {"images": columns["images"]}
            run["slower"] = {decay: _points(images | other) for decay, other in run["slower"].items()}
    return results


def _columns(points: list[Any]) -> Any:
    """[{name: value}] → {name: [value]}, and so within."""
    if not points or not isinstance(points[0], dict):
        return points
    return {name: _columns([point[name] for point in points]) for name in points[0]}


def _points(columns: Any) -> list[Any]:
    """The inverse of `_columns`."""
    if isinstance(columns, list):
        return columns
    rows = zip(*(_points(column) for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return {key: _rounded(each) for key, each in value.items()} if isinstance(value, dict) else value
