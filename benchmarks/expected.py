"""Expected curves of a recipe, and pictures of them beside other runs.

    python benchmarks/expected.py make digits-sct runs/a runs/b runs/c   → src/consistune/expected
    python benchmarks/expected.py draw digits-sct loss/t=0.3-1 docs/x.svg "rate × 30=runs/d" "seed 3=runs/e"
    python benchmarks/expected.py tried digits-edm "rate × 30=runs/d"     → benchmarks/results/expected.json
    python benchmarks/expected.py page                                    → docs/results/expected.md

The runs of a recipe are whole, as the recipe stands, and differ in their seed alone (and in their teacher's).
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from consistune.pages.plots import Axis, Plot
from consistune.recipe import read_recipe, shipped_recipes
from consistune.recipe.reading import to_yaml
from consistune.recipe.yaml_text import parse_yaml
from consistune.system.files import write_atomically
from consistune.training.check import check_run, fingerprint_of
from consistune.training.expected import (
    FOLDER,
    PARTS,
    Expected,
    curves_of,
    differences,
    digest_of,
    expected_named,
    method_of,
    of_complete_parts,
)
from consistune.training.folder import read_recipe_of
from consistune.training.metrics_file import MetricsFile
from tables import HERE, fill, markdown

DIGITS = 4
"""Significant digits of a stored value."""


def made(name: str, runs: list[Path]) -> Expected:
    """The expected curves of a recipe from its runs. Exits, with a line, for runs that are not such."""
    recipe = parse_yaml(to_yaml(read_recipe(name)), name)
    method, images = method_of(recipe), recipe["train"]["images"]
    if len(runs) < 2:
        raise SystemExit("one run has no spread: give two or more of different seeds")
    about, curves, prints = [], [], set()
    for run in runs:
        own = read_recipe_of(run)
        found = [str(one) for one in differences(method_of(own), method)]
        records = MetricsFile(run).records()
        if found or own["train"]["images"] != images or not (run / "model").is_dir():
            raise SystemExit(f"{run} is no whole run of {name}: {'; '.join(found) or 'not finished'}")
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        about.append({"seed": own["train"]["seed"], "environment": summary(environment)})
        curves.append(curves_of(records, images))
        prints.add(fingerprint_of(run))
    if len({one["seed"] for one in about}) < len(runs) or len(prints) != 1:
        raise SystemExit("the runs have a seed twice, or other images")
    figures = sorted(set.intersection(*(set(curve) for curve in curves)))
    return Expected(
        name=name,
        recipe=method,
        recipe_sha256=digest_of(method, images),
        images=images,
        data=Path(recipe["data"]).name,
        data_sha256=prints.pop(),
        runs=tuple(about),
        curves={figure: tuple(tuple(map(rounded, curve[figure])) for curve in curves) for figure in figures},
    )


def summary(environment: dict[str, Any]) -> dict[str, Any]:
    """What of a run's environment.json is kept: the versions and the machine, not the command."""
    return {key: value for key, value in environment.items() if key not in ("command",)}


def rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def drawn(expected: Expected, figure: str, runs: dict[str, Path]) -> str:
    """An SVG: a figure's band, its middle, and the curves of runs."""
    shares = [100 * (part + 1) / PARTS for part in range(PARTS)]
    bands = [(share, band) for share, band in zip(shares, expected.bands(figure), strict=True) if band]
    xs = [share for share, _ in bands]
    series: dict[str, Any] = {
        "expected, from": (xs, [band.low for _, band in bands]),
        "expected, to": (xs, [band.high for _, band in bands]),
    }
    for name, run in runs.items():
        recipe = read_recipe_of(run)
        whole = of_complete_parts(MetricsFile(run).records(), recipe)
        curve = curves_of(whole, recipe["train"]["images"])[figure]
        points = [(share, value) for share, value in zip(shares, curve, strict=True) if value is not None]
        series[name] = tuple(map(list, zip(*points, strict=True)))
    title = f"{expected.name}: {figure}"
    return Plot(series, Axis("share of training, %"), Axis(figure, log=True), title).svg()


def tried(name: str, runs: dict[str, Path]) -> dict[str, Any]:
    """What `consistune check` finds in runs of a recipe: its first figure and step, and the share seen."""
    cases = []
    for title, run in runs.items():
        verdict = check_run(run)
        assert verdict.compared.expected is not None
        assert verdict.compared.expected.name == name
        first = verdict.left[0] if verdict.left else None
        cases.append(
            {
                "run": title,
                "differences": [one.key for one in verdict.compared.differences],
                "share": round(verdict.images / verdict.total, 3),
                "normal": verdict.normal,
                "figures": len(verdict.left),
                "first": first and {"figure": first.figure, "step": first.step},
            }
        )
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return {"recipe": name, "machine": summary(environment), "cases": cases}


def tried_table(record: dict[str, Any]) -> str:
    """The table of docs/check.md."""
    rows = []
    for case in record["cases"]:
        first = case["first"]
        found = (
            f"{case['figures']} figures, first `{first['figure']}` at step {first['step']:,}"
            if first
            else "nothing"
        )
        rows.append(
            [case["run"], f"{case['share']:.0%}", "normal" if case["normal"] else "not normal", found]
        )
    return markdown([f"run of `{record['recipe']}`", "of training seen", "verdict", "left their band"], rows)


SHOWN = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""The shares of training of a page's table."""


def page_table(expected: Expected) -> str:
    """Loss, gradient norm and, where measured, distances: the mean and standard deviation of the runs."""
    rows = []
    for figure in expected.curves:
        if figure in ("loss", "gradient_norm") or "frechet" in figure:
            columns = list(zip(*expected.curves[figure], strict=True))
            cells = [columns[round(PARTS * share) - 1] for share in SHOWN]
            rows.append([f"`{figure}`", *(spread(cell) for cell in cells)])
    return markdown([f"`{expected.name}`", *(f"{share:.0%}" for share in SHOWN)], rows)


def spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{mean(known):.3g} ± {stdev(known):.2g}" if len(known) > 1 else "–"


def page() -> None:
    """The tables of docs/results/expected.md, and which recipes have none."""
    made = [expected_named(path.stem) for path in sorted(FOLDER.glob("*.json"))]
    tables = "\n".join(f"{len(one.runs)} runs of {one.images:,} images.\n\n{page_table(one)}" for one in made)
    fill("results/expected.md", "expected", tables)
    none = [f"`{name}`" for name in shipped_recipes() if name not in {one.name for one in made}]
    fill("results/expected.md", "none", ", ".join(none))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make")
    make.add_argument("name")
    make.add_argument("runs", nargs="+", type=Path)
    make.add_argument("--out", type=Path)
    draw = commands.add_parser("draw")
    draw.add_argument("name")
    draw.add_argument("figure")
    draw.add_argument("out", type=Path)
    draw.add_argument("runs", nargs="*", metavar="TITLE=RUN")
    trial = commands.add_parser("tried")
    trial.add_argument("name")
    trial.add_argument("runs", nargs="+", metavar="TITLE=RUN")
    commands.add_parser("page")
    given = parser.parse_args()
    if given.command == "page":
        page()
        return
    if given.command == "make":
        path = given.out or FOLDER / f"{given.name}.json"
        text = made(given.name, given.runs).model_dump_json(indent=None)
        write_atomically(path, text + "\n")
        print(f"{path}: {len(text):,} bytes")
        return
    runs = {title: Path(run) for title, _, run in (word.rpartition("=") for word in given.runs)}
    if given.command == "tried":
        record = tried(given.name, runs)
        write_atomically(
            HERE / "results" / "expected.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        )
        fill("check.md", "check", tried_table(record))
    else:
        write_atomically(given.out, drawn(expected_named(given.name), given.figure, runs) + "\n")


if __name__ == "__main__":
    main()
