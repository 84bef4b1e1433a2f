"""The ledger of results: docs/results/ledger.json, and its tables in docs/results/ledger.md and README.md.

    python benchmarks/ledger.py

It has a row for every experiment under docs/results (its data.json) and every file of benchmarks/results.
What a benchmark did not record is null. Run it after a result changes.
"""

import ast
import json
import re
import subprocess
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from consistune.recipe import read_recipe
from consistune.reproduce.study import digest_of
from consistune.system.files import write_atomically
from digits import read_study, recipe_of
from records import Row, read
from tables import DOCS, HERE, KEYS, distances, fill, grouped, markdown, override, ratio

ROOT = HERE.parent
ATTACKS = ROOT / "tests" / "attack"
LEDGER = DOCS / "results" / "ledger.json"
FIELDS = ("result", "what", "command", "recipes", "code", "hardware", "seeds", "images", "teacher_images",
          "minutes", "figures", "curve")  # fmt: skip
EARLIER_LABELS = {"digits_seeds": ("set", "estimator", "keys")}
"""Of a record whose runs lack the factors of its study's file."""
OPTIONS = {
    "box": " pack runs/box --teachers runs/first runs/teacher --results results/*",
    "expected": ' tried digits-edm "rate × 30=RUN"',
    "reconstruction": " --sets FOLDER",
    "target_variance": " --sets FOLDER",
}
"""What a benchmark needs to write a result, as its own help says."""


def rows() -> list[Row]:
    """All rows: experiments, then benchmarks, by name."""
    made = [experiment(path) for path in sorted((DOCS / "results").glob("*/*/data.json"))]
    made += [benchmark(path) for path in sorted((HERE / "results").glob("*.json"))]
    return [{field: row.get(field) for field in FIELDS} for row in made]


def experiment(path: Path) -> Row:
    record = json.loads(path.read_text(encoding="utf-8"))
    place = path.relative_to(ROOT)
    figures = at_the_end(record["summary"])
    curve = place.with_name("data.csv").as_posix()
    return record | {
        "result": place.as_posix(), "what": record["title"], "figures": figures, "curve": curve
    }  # fmt: skip


def at_the_end(summary: list[Row]) -> list[Row]:
    """The lines of a summary at its last point of training; all lines where training has no points."""
    last = max((line.get("images", 0) for line in summary), default=0)
    return [line for line in summary if line.get("images", last) == last]


def benchmark(path: Path) -> Row:
    data = read(path.stem)
    what, command = made_by(path.stem)
    place = path.relative_to(ROOT).as_posix()
    row = {
        "result": place,
        "what": what,
        "command": command,
        "recipes": {},
        "code": last_commit(path),
        "hardware": machine_of(data),
        "seeds": data.get("settings", {}).get("seeds"),
        "curve": place,
    }
    runs = data.get("runs") if (HERE / "studies" / f"{path.stem}.yaml").exists() else None
    if isinstance(runs, list) and runs:
        row |= of_study(path.stem, runs)
    elif path.stem == "mixture_2d":
        row["figures"] = [{"run": name} | line for name, line in data["summary"].items()]
    return row


def of_study(name: str, runs: list[Row]) -> Row:
    """Seeds, recipes, images and figures of a study's runs, by the words of its factors."""
    study = read_study(name)
    labels = EARLIER_LABELS.get(name, tuple(study.factors))

    def group(run: Row) -> str:
        keys = " ".join(key for key in run.get("keys", ()) if not key.startswith("estimator="))
        words = {**run, "keys": keys}
        return ", ".join(str(words[label]) for label in labels if label in words)

    groups = grouped(runs, group)
    recipes = {key: recipe_of(study, group[0]) for key, group in groups.items()}
    tuned = any(recipe.start_from is not None for recipe in recipes.values())
    teacher = read_recipe(f"{Path(study.data).name}-edm", study.scale.teacher) if tuned else None
    return {
        "command": f"python benchmarks/digits.py {name} --again {name}.json",
        "seeds": sorted({run["seed"] for run in runs}),
        "recipes": {key: training_of(groups[key][0], recipe) for key, recipe in recipes.items()},
        "images": max(images_of(run) for run in runs),
        "teacher_images": teacher and teacher.train.images,
        "minutes": sum(run["seconds"] for run in runs) / 60,
        "figures": [figures(key, group) for key, group in groups.items()],
    }


def training_of(run: Row, recipe: Any) -> str:
    """What a run was trained by: its folder's name without the seed; older records: the recipe's hash."""
    return run["training"].rpartition("-")[0] if "training" in run else digest_of(recipe)


def images_of(run: Row) -> int:
    return int(run["images"] if "images" in run else run["curve"][-1]["images"])


def figures(name: str, runs: list[Row]) -> Row:
    """The last point, mean and deviation over seeds."""
    line: Row = {"run": name, "images": images_of(runs[0]), "seeds": len(runs)}
    for steps in (1, 2) if runs[0]["curve"] else ():
        for key in KEYS:
            values = distances(runs, -1, steps, key)
            line[f"{key}, {steps} step"] = mean(values)
            line[f"{key}, {steps} step_std"] = stdev(values) if len(values) > 1 else None
    return line


def made_by(name: str) -> tuple[str, str]:
    """What a result is, and its command: a study's, or that of the script of its name or that writes it."""
    if (HERE / "studies" / f"{name}.yaml").exists():
        return read_study(name).title, f"python benchmarks/digits.py {name}"
    same = HERE / f"{name}.py"
    known = [*HERE.glob("*.py"), *ATTACKS.glob("test_*.py")]
    scripts = [same] if same.exists() else [path for path in sorted(known) if _writes(path, name)]
    if len(scripts) != 1:
        raise ValueError(f"{name}.json is written by {[p.name for p in scripts] or 'no script'}")
    (script,) = scripts
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    place = script.relative_to(ROOT).as_posix()
    title = text.split("\n")[0].rstrip(".:")
    if ATTACKS in script.parents:
        return title, f"CONSISTUNE_ATTACK=60 python -m pytest {place}"
    return title, f"python {place}{OPTIONS.get(name) or section_of(script, name)}"


def section_of(script: Path, name: str) -> str:
    """The section of a benchmark that writes a result, where the script has several."""
    sections = re.findall(r'\.section\(\s*"(\w+)\.json".*?\ndef (\w+)', script.read_text("utf-8"), re.DOTALL)
    mine = [function for file, function in sections if file == name]
    return "".join(f" {function.replace('_', '-')}" for function in mine if len(sections) > len(mine))


def _writes(script: Path, name: str) -> bool:
    text = script.read_text(encoding="utf-8")
    return script.name != "tables.py" and (f'"{name}.json"' in text or f'keep_record("{name}"' in text)


def machine_of(data: Any) -> Any:
    """What a benchmark says of its machine, at its top or in its first part that does."""
    if not isinstance(data, dict):
        return None
    if "machine" in data:
        return data["machine"]
    plain = {key: data[key] for key in ("cpu", "threads", "torch") if key in data}
    return plain or next((known for part in data.values() if (known := machine_of(part))), None)


def last_commit(path: Path) -> str | None:
    """The commit that last wrote a file; None where it is not committed."""
    command = ["git", "log", "-1", "--format=%h", "--", str(path)]
    return (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() or None
    )


def images_cell(row: Row) -> str:
    if not row["images"]:
        return "–"
    return f"{row['images']:,}" + (f" ({row['teacher_images']:,})" if row["teacher_images"] else "")


def table(ledger: list[Row]) -> str:
    lines = []
    for row in ledger:
        path, seeds = Path(row["result"]), row["seeds"]
        place = "/".join(path.parts[2:])
        shown = f"[{place.removesuffix('/data.json')}]({place})" if path.parts[0] == "docs" else path.stem
        number = len(row["figures"] or [])
        lines.append(
            [
                shown,
                # Recorded under the program's earlier name.
                f"`{row['command'].replace('sct ', 'consistune ', 1)}`",
                len(seeds) if isinstance(seeds, list) else (seeds or "–"),
                images_cell(row),
                "–" if row["minutes"] is None else f"{row['minutes']:.1f}",
                f"{number} lines" if number else "in the file",
            ]
        )
    return markdown(["result", "command", "seeds", "images a run (teacher)", "minutes", "figures"], lines)


def ratios() -> str:
    """SCT's distances over ECT's, half-way and at the end, of the experiments and of digits_seeds."""
    lines = experiment_ratios()
    groups = grouped(read("digits_seeds")["runs"], setting_of)
    groups.pop("192,000 images, lr=5e-4")  # the recipe's own: the experiments have it, with the same figures
    for setting, runs in groups.items():
        by_target = grouped(runs, lambda run: run["estimator"])
        for target in ("batch", "class"):
            if target in by_target:
                ours, base = by_target[target], by_target["one-sample"]
                cells = [ratio(ours, base, point, steps) for steps in (1, 2) for point in (3, -1)]
                lines.append([f"digits, {setting}", target, len(ours), *cells])
    head = ["setting", "references", "seeds", "1 step, mid (held-out)", "end", "2 steps, mid", "end"]
    return markdown(head, lines)


def setting_of(run: Row) -> str:
    cap = override(run, "pairs.gap.max_ratio")
    images, rate = run["curve"][-1]["images"], override(run, "optimizer.lr")
    return f"{images:,} images, lr={rate}" + ("" if cap is None else f", cap {cap}")


def experiment_ratios() -> list[list[Any]]:
    """Of every `target` under docs/results, and of `convergence` where there is no `target`."""
    lines = []
    for path in sorted((DOCS / "results").glob("*/convergence/data.json")):
        other = path.parents[1] / "target" / "data.json"
        record = json.loads((other if other.exists() else path).read_text(encoding="utf-8"))
        last = max(line["images"] for line in record["summary"])
        middle = min(line["images"] for line in record["summary"] if 2 * line["images"] >= 0.99 * last)
        for run, points in grouped(record["summary"], lambda line: line["run"]).items():
            if run in ("ECT", "none"):
                continue
            at = {(line["sampler"], line["images"]): line for line in points}
            chosen = [at[f"steps={steps}", images] for steps in (1, 2) for images in (middle, last)]
            cells = ["{:.2f} ({:.2f})".format(*(line[f"{key}_ratio"] for key in KEYS)) for line in chosen]
            setting = f"{record['data']}, {record['images']:,} images"
            lines.append([setting, run, len(record["seeds"]), *cells])
    return lines


def main() -> None:
    ledger = rows()
    write_atomically(LEDGER, json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    fill("results/ledger.md", "ledger", table(ledger))
    fill("results/README.md", "ratios", ratios())


if __name__ == "__main__":
    main()
