"""The ledger of results: docs/results/ledger.json, and its table in docs/results/README.md.

    python benchmarks/ledger.py

A row for every experiment under docs/results (its data.json) and every file of benchmarks/results: command,
digest of each recipe, code, hardware, seeds, images seen (teachers' apart), minutes, figures with spread, and
where the curve stands. What a benchmark did not write down is null. Run it after either changes.
"""

import ast
import json
import re
import subprocess
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from consistune.recipe import read_recipe
from consistune.reproduce.study import digest_of
from consistune.system.files import write_atomically
from pages import DOCS, fill

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LEDGER = DOCS / "results" / "ledger.json"
Row = dict[str, Any]


def rows() -> list[Row]:
    """All rows: experiments, then benchmarks, by name."""
    experiments = sorted((DOCS / "results").glob("*/*/data.json"))
    return [experiment(path) for path in experiments] + [
        benchmark(path) for path in sorted((HERE / "results").glob("*.json"))
    ]


def experiment(path: Path) -> Row:
    """From an experiment's data.json; its figures are the last point of each line."""
    record = json.loads(path.read_text(encoding="utf-8"))
    folder = path.parent.relative_to(ROOT).as_posix()
    return {
        "result": f"{folder}/data.json",
        "what": record["title"],
        "command": record["command"],
        "recipes": record["recipes"],
        "code": record["code"],
        "hardware": record["hardware"],
        "seeds": record["seeds"],
        "images": record["images"],
        "teacher_images": record["teacher_images"],
        "minutes": record["minutes"],
        "figures": ends(record["summary"]),
        "curve": f"{folder}/data.csv",
    }


def ends(summary: list[Row]) -> list[Row]:
    """The lines of a summary at its last point of training; all lines where training has no points."""
    last = max((line.get("images", 0) for line in summary), default=0)
    return [line for line in summary if line.get("images", last) == last]


def benchmark(path: Path) -> Row:
    data = json.loads(path.read_text(encoding="utf-8"))
    script = made_by(path)
    runs = data.get("runs")
    trained = path.stem in TRAINED and isinstance(runs, list)
    row = {
        "result": path.relative_to(ROOT).as_posix(),
        "what": ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))).split("\n")[0].rstrip(".:"),  # type: ignore[union-attr]
        "command": f"python benchmarks/{script.name}",
        "recipes": {},
        "code": recorded(path),
        "hardware": machine_of(data),
        "seeds": sorted({run["seed"] for run in runs}) if trained else data.get("settings", {}).get("seeds"),
        "images": None,
        "teacher_images": None,
        "minutes": None,
        "figures": None,
        "curve": path.relative_to(ROOT).as_posix(),
    }
    if trained:
        row |= of_runs(runs, TRAINED[path.stem])
    elif path.stem == "mixture_2d":
        row["figures"] = [{"run": name} | found for name, found in data["summary"].items()]
    return row


TRAINED = {
    "digits_levers": ("budget", "estimator", "lever"),
    "digits_seeds": ("set", "estimator", "keys"),
    "methods_digits": ("method",),
}
"""Benchmarks whose JSON holds training runs with curves, and what tells their groups apart."""
TARGETS = {
    "one-sample": "estimator={kind: one-sample}",
    "batch": "estimator={kind: score-identity, reference: batch}",
    "class": "estimator={kind: score-identity, reference: class}",
}


def of_runs(runs: list[Row], by: tuple[str, ...]) -> Row:
    groups: dict[str, list[Row]] = defaultdict(list)
    for run in runs:
        words = (" ".join(run[key]) if isinstance(run[key], list) else str(run[key]) for key in by)
        groups[", ".join(words)].append(run)
    recipes = {name: digest_of(recipe_of(members[0])) for name, members in groups.items()}
    return {
        "recipes": recipes,
        "images": max(run["curve"][-1]["images"] for run in runs),
        "teacher_images": read_recipe("digits-edm").train.images,
        "minutes": sum(run["seconds"] for run in runs) / 60,
        "figures": [figures(name, members) for name, members in groups.items()],
    }


def recipe_of(run: Row) -> Any:
    if "method" in run:
        return read_recipe(f"digits-{run['method']}")
    target = [] if "lever" in run else [TARGETS[run["estimator"]]]  # a lever's keys have its target
    return read_recipe("digits-sct", [*target, *run["keys"]])


def figures(name: str, runs: list[Row]) -> Row:
    """The last point, mean and deviation over seeds."""
    line: Row = {"run": name, "images": runs[0]["curve"][-1]["images"], "seeds": len(runs)}
    for steps in (1, 2):
        for key in ("frechet_train", "frechet_held_out"):
            values = [float(run["curve"][-1][f"steps_{steps}"][key]) for run in runs]
            line[f"{key}, {steps} step"] = mean(values)
            line[f"{key}, {steps} step_std"] = stdev(values) if len(values) > 1 else None
    return line


def made_by(path: Path) -> Path:
    """The script of the result's name, or the one with a section that writes the file."""
    same = HERE / f"{path.stem}.py"
    if same.exists():
        return same
    writes = re.compile(rf'section\(\s*"{re.escape(path.name)}"')
    found = [p for p in sorted(HERE.glob("*.py")) if writes.search(p.read_text(encoding="utf-8"))]
    if len(found) != 1:
        raise ValueError(f"{path.name} is written by {[p.name for p in found] or 'no script'}")
    return found[0]


def machine_of(data: Any) -> Any:
    """What a benchmark says of its machine, at its top or in its first part that does."""
    if not isinstance(data, dict):
        return None
    if "machine" in data:
        return data["machine"]
    plain = {key: data[key] for key in ("cpu", "threads", "torch") if key in data}
    return plain or next((found for part in data.values() if (found := machine_of(part))), None)


def recorded(path: Path) -> str | None:
    """The commit that last wrote a file; None where it is not committed."""
    command = ["git", "log", "-1", "--format=%h", "--", str(path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return found or None


def table(ledger: list[Row]) -> str:
    lines = [
        "| result | command | seeds | images a run (teacher) | minutes | figures |",
        "|---|---|---|---|---|---|",
    ]
    for row in ledger:
        path = Path(row["result"])
        shown = f"[{'/'.join(path.parts[2:-1]) if path.name == 'data.json' else path.stem}]"
        link = "../../" + row["result"]
        seeds = row["seeds"]
        count = len(seeds) if isinstance(seeds, list) else (seeds or "–")
        images = "–" if not row["images"] else f"{row['images']:,} ({row['teacher_images']:,})"
        minutes = "–" if row["minutes"] is None else f"{row['minutes']:.1f}"
        number = len(row["figures"] or [])
        held = f"{number} lines" if number else "in the file"
        lines.append(f"| {shown}({link}) | `{row['command']}` | {count} | {images} | {minutes} | {held} |")
    return "\n".join(lines) + "\n"


def ratios(path: Path = HERE / "results" / "digits_seeds.json") -> str:
    """SCT's distances over ECT's, half-way and at the end, for each setting of digits_seeds."""
    groups: dict[tuple[str, str], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for run in json.loads(path.read_text(encoding="utf-8"))["runs"]:
        setting = f"{run['curve'][-1]['images']:,} images, {run['keys'][0].removeprefix('optimizer.')}"
        if setting == "192,000 images, lr=5e-4":
            continue  # the recipe's own: the experiments have it, with the same figures
        cap = next((key.split("=")[1] for key in run["keys"] if "max_ratio" in key), None)
        groups[setting, f", cap {cap}" if cap else ""][run["estimator"]].append(run)
    lines = [
        "| setting | references | seeds | 1 step, mid (held-out) | end | 2 steps, mid | end |",
        "|---|---|---|---|---|---|---|",
        *experiment_ratios(),
    ]
    for (setting, cap), by in groups.items():
        for name in ("batch", "class"):
            if name in by:
                cells = [
                    " (".join(f"{ratio(by, name, point, steps, key):.2f}" for key in KEYS) + ")"
                    for steps in (1, 2)
                    for point in (3, -1)
                ]
                lines.append(f"| digits, {setting}{cap} | {name} | {len(by[name])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


KEYS = ("frechet_train", "frechet_held_out")


def experiment_ratios() -> list[str]:
    """The same of every `target` under docs/results, and of `convergence` where there is no `target`."""
    lines = []
    for path in sorted((DOCS / "results").glob("*/convergence/data.json")):
        other = path.parents[1] / "target" / "data.json"
        record = json.loads((other if other.exists() else path).read_text(encoding="utf-8"))
        last = max(line["images"] for line in record["summary"])
        middle = min(line["images"] for line in record["summary"] if 2 * line["images"] >= 0.99 * last)
        by: dict[str, dict[tuple[str, int], Row]] = defaultdict(dict)
        for line in record["summary"]:
            by[line["run"]][line["sampler"], line["images"]] = line
        for run, points in by.items():
            if run in ("ECT", "none"):
                continue
            cells = [
                " (".join(f"{points[f'steps={steps}', images][f'{key}_ratio']:.2f}" for key in KEYS) + ")"
                for steps in (1, 2)
                for images in (middle, last)
            ]
            setting = f"{record['data']}, {record['images']:,} images"
            lines.append(f"| {setting} | {run} | {len(record['seeds'])} | {' | '.join(cells)} |")
    return lines


def ratio(by: dict[str, list[Row]], name: str, point: int, steps: int, key: str) -> float:
    """Means over seeds, `name`'s over one-sample's."""
    ours, base = (
        mean(run["curve"][point][f"steps_{steps}"][key] for run in by[n]) for n in (name, "one-sample")
    )
    return ours / base


def main() -> None:
    ledger = rows()
    write_atomically(LEDGER, json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    fill("results/README.md", "ledger", table(ledger))
    fill("results/README.md", "ratios", ratios())


if __name__ == "__main__":
    main()
