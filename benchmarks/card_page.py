"""The goals on a card, and the page of benchmarks/card.py: both are made from its record.

python benchmarks/card_page.py      the goals in docs/card.md, from results/card.json if there
"""

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consistune.pages.page import MISSING, Cell, Picture, Table, render
from tables import fill, markdown

Record = dict[str, Any]
Values = Sequence[float] | None
"""A quantity, once a round; None: not measured."""
ECT, SCT = "ECT, bf16, compiled", "SCT, bf16, compiled"
RESULTS = Path(__file__).parent / "results"
EXPECTED = RESULTS / "roofline.json"


def part(record: Record, stage: str, name: str) -> Record:
    found: Record = record["stages"].get(stage, {}).get("parts", {}).get(name, {})
    return found


def ratios(stage: str, name: str, above: str, below: str) -> Callable[[Record], Values]:
    """Quotients of two steps' seconds, round by round: they ran in turns."""

    def values(record: Record) -> Values:
        times = part(record, stage, name).get("times", {})
        if not {above, below} <= set(times):
            return None
        return [a / b for a, b in zip(times[above]["seconds"], times[below]["seconds"], strict=True)]

    return values


def share_of_ceiling(record: Record) -> Values:
    """FLOP/s of the compiled step over the measured rate of bf16 products."""
    rate = part(record, "ceilings", "bf16").get("FLOP/s")
    flops = part(record, "train", "work").get("FLOP a step")
    times = part(record, "train", "compiled").get("times", {})
    if not (rate and flops and ECT in times):
        return None
    return [flops / seconds / rate for seconds in times[ECT]["seconds"]]


def memory(record: Record) -> Values:
    peaks = part(record, "train", "compiled").get("peak bytes", {})
    return [peaks[SCT] / peaks["plain, fp32"]] if peaks.get(SCT) and peaks.get("plain, fp32") else None


def failed_tests(record: Record) -> Values:
    counts = part(record, "tests", "counts")
    if "exit status" not in counts:
        return None
    return [counts.get("failed", 0) + counts.get("error", 0) + float(counts["exit status"] not in (0, 1))]


def whole_runs(record: Record) -> Values:
    parts = [name for stage in ("digits", "run") for name in record["stages"].get(stage, {}).get("parts", {})]
    return [float(sum(name.endswith("measures") for name in parts))] if parts else None


def sampling(record: Record) -> Values:
    """Of the largest batch that both have drawn."""
    names = record["stages"].get("sampling", {}).get("parts", {})
    found = [
        ratios("sampling", name, "diffusers, bf16", "ours, bf16")(record)
        for name in names
        if name.startswith("batch")
    ]
    return next((values for values in reversed(found) if values), None)


@dataclass(frozen=True)
class Goal:
    """What a card must show: a median at most or at least `bound`."""

    name: str
    bound: float
    at_most: bool
    values: Callable[[Record], Values]

    def row(self, record: Record) -> dict[str, str]:
        """As words: name, goal, value (median, and the range over rounds), state."""
        words = {"name": self.name, "goal": f"{'≤' if self.at_most else '≥'} {self.bound:g}"}
        values = self.values(record)
        if not values:
            return {**words, "value": MISSING, "state": "not measured"}
        found = statistics.median(values)
        met = found <= self.bound if self.at_most else found >= self.bound
        value = f"{found:.3g} ({min(values):.3g} to {max(values):.3g})"
        return {**words, "value": value, "state": "met" if met else "not met"}


GOALS = (
    Goal("SCT's step, 50,000 references, over ECT's", 1.02, True, ratios("train", "compiled", SCT, ECT)),
    Goal(
        "training over the plain loop, fp32 (ECT's setting)",
        5,
        False,
        ratios("train", "compiled", "plain, fp32", ECT),
    ),
    Goal("training over the plain loop, TF32", 2, False, ratios("train", "compiled", "plain, tf32", ECT)),
    Goal("training over the plain loop, bf16", 1.5, False, ratios("train", "compiled", "plain, bf16", ECT)),
    Goal("compiled step, share of the measured bf16 rate", 0.4, False, share_of_ceiling),
    Goal("one-step sampling over diffusers, both bf16", 1.5, False, sampling),
    Goal("memory of SCT's step over the plain loop's, fp32", 0.6, True, memory),
    Goal("failed tests of those marked gpu", 0, True, failed_tests),
    Goal("whole runs measured: digits, CIFAR-10", 2, False, whole_runs),
)


def goals(record: Record) -> list[dict[str, str]]:
    """The table of goals, and what the record says of each."""
    return [goal.row(record) for goal in GOALS]


def goals_in_docs(record: Record | None) -> str:
    """The table of goals in Markdown, for the record of a real card or for none."""
    rows = goals(record or {"stages": {}})
    devices = part(record, "ceilings", "machine").get("devices", []) if record else []
    head = ["", "goal", f"measured on {', '.join(devices)}" if devices else "measured", ""]
    return markdown(head, [[row[key] for key in ("name", "goal", "value", "state")] for row in rows])


def page(record: Record, folder: Path) -> str:
    """The page of a record; `folder` has the sample sheet."""
    sheet = folder / "card-samples.png"
    rows = record.get("goals") or goals(record)
    return render(
        "card.html",
        record=record,
        machine=list(part(record, "ceilings", "machine").items()),
        goals=Table(
            ["Goal", "Asked", "Measured", "State"],
            [
                [Cell(row[key], words=key == "name") for key in ("name", "goal", "value", "state")]
                for row in rows
            ],
        ),
        stages={
            name: _table(stage["parts"]) for name, stage in record["stages"].items() if stage.get("parts")
        },
        expected=_expected(),
        pictures=[Picture("seeds 0 to 63, one step", sheet.read_bytes())] if sheet.exists() else [],
        raw=json.dumps(record, indent=1),
    )


def _table(parts: Record) -> Table:
    rows = [(name, *row) for name, content in parts.items() for row in _flat(content)]
    return Table(
        ["Part", "Quantity", "Value"], [[Cell(str(cell), words=True) for cell in row] for row in rows]
    )


def _flat(content: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of everything in a record; timings as their median and range."""
    if isinstance(content, dict) and "seconds" in content and "median" in content:
        seconds = content["seconds"]
        value = f"{content['median']:.4g} s ({min(seconds):.4g} to {max(seconds):.4g})"
        if "images a second" in content:
            value += f", {content['images a second']:,.0f} images/s"
        yield name, value
        content = {k: v for k, v in content.items() if k not in ("seconds", "median", "images a second")}
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{name}, {key}" if name else key)
    elif isinstance(content, list):
        yield name, "\n".join(map(str, content))
    elif isinstance(content, float) or (isinstance(content, int) and abs(content) >= 10_000):
        yield name, f"{content:,.4g}"
    else:
        yield name, str(content)


def _expected() -> Table:
    """What the count of `benchmarks/roofline.py` says of an H100."""
    rows = json.loads(EXPECTED.read_text())["steps"] if EXPECTED.exists() else []
    return Table(
        ["Step", "Expected by count, seconds"],
        [
            [
                Cell(f"{row['network']}, batch {row['batch']}, {row['form']}", words=True),
                Cell(f"{row['seconds']:.2f}"),
            ]
            for row in rows
        ],
    )


def main() -> None:
    path = RESULTS / "card.json"
    record = json.loads(path.read_text()) if path.exists() else None
    fill("card.md", "goals", goals_in_docs(record if record and record["mode"] == "card" else None))


if __name__ == "__main__":
    main()
