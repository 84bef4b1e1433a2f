"""Training studies on small data, each a file of benchmarks/studies.

    python benchmarks/digits.py digits_seeds                  an hour on one core; continues after a stop
    python benchmarks/digits.py digits_levers --seeds 0 --only budget=short --only "lever=2 solver steps"
    python benchmarks/digits.py family --again family.json    the recorded runs anew, into another record

The runs are kept under --work, known by the hash of their recipes, and start from one teacher a seed. Results
are added to benchmarks/results/STUDY.json after each run; a run that is recorded there is not made again.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from consistune.bench.timing import alternate, in_own_process
from consistune.cli.main import explain
from consistune.cli.screen import Screen
from consistune.models import default_sampler, load, sample
from consistune.pages.plots import SampleGrids
from consistune.recipe import read_recipe, to_yaml, validate
from consistune.recipe.plan import make_plan
from consistune.reproduce.runs import Run
from consistune.reproduce.spec import RunSpec
from consistune.reproduce.study import Study, with_teacher
from consistune.system.files import write_atomically
from consistune.system.host import machine, package_version, peak_bytes
from consistune.training.interrupt import Interrupted
from harness import FREED_AT_ONCE, clock
from records import RESULTS, Refused, Row, read_record, record
from study_file import Line, StudyFile, check_word, read_study
from study_tables import table_of
from tables import DOCS, HERE, KEYS, fill

WORK = Path("runs/benchmarks")


def overrides_of(study: StudyFile, row: Row) -> tuple[str, ...]:
    """Every override of a run with these labels."""
    of_factors = [keys[row[factor]] for factor, keys in study.factors.items() if row.get(factor) in keys]
    return (*study.set, *itertools.chain.from_iterable(of_factors))


def keys_of(study: StudyFile, row: Row) -> tuple[str, ...]:
    """The overrides of a recorded run: its recorded ones, before which old records lack the estimator's."""
    if "keys" not in row:
        return overrides_of(study, row)
    return (*study.factors.get("estimator", {}).get(row.get("estimator", ""), ()), *row["keys"])


def recipe_of(study: StudyFile, row: Row) -> Any:
    """The recipe of a recorded run."""
    recipe = read_recipe(study.recipe.format(**row), keys_of(study, row))
    if recipe.start_from is None:
        return recipe
    return read_recipe(study.recipe.format(**row), (*study.scale.student, *keys_of(study, row)))


def identity(study: StudyFile, row: Row) -> tuple[Any, ...]:
    """Recipe, seed and overrides: equal for a run and its record, though old records lack some keys."""
    keys = {*row.get("keys", ()), *overrides_of(study, row)}
    return study.recipe.format(**row), row["seed"], frozenset(keys)


def labelled(study: StudyFile, run: Row) -> Row:
    """A run's words and seed; where it has no word of a factor, the one that overrides nothing."""
    plain = {factor: word for factor, words in study.factors.items() for word in words if not words[word]}
    words = plain | {name: run[name] for name in study.factors if name in run}
    return {factor: words[factor] for factor in study.factors if factor in words} | {"seed": run["seed"]}


def rows_of(study: StudyFile, seeds: list[int]) -> Iterator[tuple[Row, Line]]:
    """The labels, seed and overrides of every run, in the order of the file; each once."""
    known = set()
    for line in study.runs:
        words = [[word] if isinstance(word, str) else word for word in line.of.values()]
        for seed, *chosen in itertools.product(seeds, *words):
            row = labelled(study, dict(zip(line.of, chosen, strict=True)) | {"seed": seed})
            row["keys"] = list(overrides_of(study, row))
            if identity(study, row) not in known:
                known.add(identity(study, row))
                yield row, line


def result_of(harness: Study, spec: RunSpec, run: Run, line: Line) -> Row:
    """What is recorded of a run: images, seconds, what made it, curves of the averages, measures at the end.

    "curve" is of the first average, "slower" holds the others by their decay.
    """
    row: Row = {"images": run.images, "seconds": 60 * run.minutes}
    # The folder's name has the hash of the recipe, and of the teacher's.
    row |= {"training": run.folder.name, "code": package_version(), "processor": machine()["processor"]}
    decays = [f"{decay:g}" for decay in harness.recipe(spec, 0).train.ema] if spec.all_averages else ["first"]
    curves: dict[str, list[Row]] = {decay: [] for decay in decays}
    for point in run.curve:
        for number, curve in enumerate(curves.values()):
            start = f"average {number}, " if number else ""
            measures = {f"steps_{n}": point[f"{start}steps={n}"] for n in (1, 2)}
            curve.append({"images": point["images"]} | measures)
    first, *others = curves
    row["curve"] = curves[first]
    if spec.all_averages:
        row |= {"average": first, "slower": {decay: curves[decay] for decay in others}}
    if line.steps:
        model = run.model()
        row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        row["ends"] = {
            str(n): harness.measured(
                run, f"steps={n}", partial(harness.judge, model, default_sampler(model, n))
            )
            for n in line.steps
        }
    if line.omegas:
        row["guided"] = list(guided(harness, run, line))
    return row


def guided(harness: Study, run: Run, line: Line) -> Iterator[Row]:
    """A finished run's measures in one and two steps with guidance, by every worse model and ω of a line."""
    model = run.model()
    worse = {share: run.snapshot(share) for share in line.snapshots}
    if line.of_start:
        assert run.teacher is not None
        worse |= {f"start's {share}": run.teacher.snapshot(share) for share in line.of_start}
    for (name, other), omega, n in itertools.product(worse.items(), line.omegas, (1, 2)):
        measure = partial(harness.judge, model, default_sampler(model, n), guidance=omega, worse=other)
        measures = harness.measured(run, f"steps={n}, omega={omega:g} by {name}", measure)
        yield {"worse": name, "omega": omega, "steps": n} | measures


def step_ratios(study: StudyFile, harness: Study) -> Row:
    """CPU time of some training steps of each word over the base word's, and the latter, round by round."""
    ask = study.step_ratios
    assert ask is not None
    recipes = {}
    for word, keys in study.factors[ask.factor].items():
        name = (ask.recipe or study.recipe).format(**{ask.factor: word})
        common = study.set if ask.recipe is None else ask.set
        spec = RunSpec(recipe=name, set=(*common, *keys))
        recipe, teacher = harness.recipe(spec, 0), harness.teacher(spec, 0)
        if teacher is not None:
            recipe = with_teacher(recipe, str(teacher.folder / "model"))
        recipes[word] = recipe
    times = alternate(
        {word: partial(next, make_plan(recipe).trainer().steps()) for word, recipe in recipes.items()},
        ask.rounds,
        inner=ask.steps,
        clock=clock(),
    )
    base = times[ask.base].seconds
    ratios = {word: [a / b for a, b in zip(each.seconds, base, strict=True)] for word, each in times.items()}
    found = {"step_ratios": ratios, "step_seconds": base}
    if ask.memory:
        found["peak_bytes"] = {
            word: in_own_process(peak_of_steps, to_yaml(recipe), environment=FREED_AT_ONCE)
            for word, recipe in recipes.items()
        }
    return found


def peak_of_steps(recipe: str) -> int:
    """This process's peak memory after five steps of a recipe (YAML), above what it held before."""
    torch.set_num_threads(1)
    plan = make_plan(validate(yaml.safe_load(recipe), "a step"))
    before = peak_bytes()
    for _ in islice(plan.trainer().steps(), 5):
        pass
    return peak_bytes() - before


def recorded_rows(
    study: StudyFile, results: Row, seeds: list[int] | None = None
) -> Iterator[tuple[Row, Line]]:
    """The runs of a record (of these seeds), each with its line in the study's file, if that has it."""
    runs = [run for run in results["runs"] if seeds is None or run["seed"] in seeds]
    lines = {
        identity(study, row): line for row, line in rows_of(study, sorted({run["seed"] for run in runs}))
    }
    for run in runs:
        row = labelled(study, run)
        row["keys"] = list(dict.fromkeys(keys_of(study, run)))
        yield row, lines.get(identity(study, run), Line(of={}))


def chosen(rows: Iterable[tuple[Row, Line]], only: dict[str, list[str]]) -> list[tuple[Row, Line]]:
    """The runs with one of the words that `only` names of a factor. Raises Refused where there is none."""
    found = [each for each in rows if all(each[0].get(factor) in words for factor, words in only.items())]
    if not found:
        words = ", ".join(f"{factor}={' or '.join(several)}" for factor, several in only.items())
        raise Refused(f"--only: no run has {words}; leave one out")
    return found


def beside(study: StudyFile, known: Row, again: Row) -> Iterator[str]:
    """For each run that both records have: its last distances in the first and in the second."""
    first = {identity(study, run): run for run in known["runs"]}
    for run in again["runs"]:
        other = first.get(identity(study, run))
        if other is not None and run["curve"]:
            ends = [[each["curve"][-1][f"steps_{n}"][KEYS[0]] for n in (1, 2)] for each in (other, run)]
            label = ", ".join(str(run[name]) for name in (*study.factors, "seed") if name in run)
            pairs = ", ".join(f"{a:.4g} → {b:.4g}" for a, b in zip(*ends, strict=True))
            yield f"{label}: {pairs}"


def make(study: StudyFile, harness: Study, path: Path, rows: Iterable[tuple[Row, Line]]) -> None:
    """Make those runs of a study that are not recorded at `path`, and record each there.

    Other programs may make other runs meanwhile: what they recorded stays.
    """
    results, _ = read_record(path), harness.data  # what is missing is said before anything is written
    if study.step_ratios is not None and "step_ratios" not in results:
        results = record(path, **step_ratios(study, harness))
    if study.start is not None and "start" not in results:
        model = load(study.start[0])
        results = record(path, start=harness.judge(model, default_sampler(model, study.start[1])))
    harness.share(
        {identity(study, row): partial(make_row, study, harness, path, row, line) for row, line in rows}
    )
    if study.picture is not None:
        record(path, held_out=draw(study, harness))


def make_row(study: StudyFile, harness: Study, path: Path, row: Row, line: Line) -> None:
    """Make a run that is not recorded at `path`, and record it there. Raises Busy: another program does."""
    results = read_record(path)
    if is_known(study, row, results):
        return
    spec, label = spec_of(study, row, results), ", ".join(map(str, list(row.values())[:-1]))
    run = harness.run(label, spec, row["seed"])
    made = row | result_of(harness, spec, run, line)
    if study.equal_cost is not None:
        made["loss"] = [[each["images"], each["loss"]] for each in run.log]
    known = read_record(path)
    if not is_known(study, row, known):  # another program may have measured it meanwhile
        once = {} if known["runs"] else {"samples": study.scale.samples, "machine": machine()}
        record(path, made, **once)
    harness.screen.say(f"{label}: {made.get('ends') or made['curve'][-1]}")


def is_known(study: StudyFile, row: Row, results: Row) -> bool:
    """Whether a run is recorded."""
    return identity(study, row) in {identity(study, one) for one in results["runs"]}


def spec_of(study: StudyFile, row: Row, results: Row) -> RunSpec:
    """A row's training; with `equal_cost`, as many images as its measured cost of a step allows."""
    keys = list(row["keys"])
    if study.equal_cost is not None and study.step_ratios is not None:
        images = study.equal_cost / median(results["step_ratios"][row[study.step_ratios.factor]])
        keys.append(f"train.images={int(images) // 256 * 256}")
    return RunSpec(recipe=study.recipe.format(**row), set=tuple(keys), all_averages=study.all_averages)


def draw(study: StudyFile, harness: Study) -> Row:
    """Draw the study's picture from the runs of seed 0. Returns the number of held-out images, measured."""
    assert study.picture is not None
    file, titles = study.picture
    (factor, *_), shown = study.factors, {}
    for title, (word, steps) in titles.items():
        row = {factor: word, "seed": 0}
        spec = spec_of(study, row | {"keys": overrides_of(study, row)}, {})
        shown[title] = sample(harness.run(word, spec, 0).model(), range(60), steps)
    write_atomically(DOCS / file, SampleGrids(shown, columns=10).png())
    held_out = harness.data.to_look_at.need_held_out(file)
    return {"images": len(held_out)} | harness.judge.of_images(held_out.images, held_out.labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in (HERE / "studies").glob("*.yaml"))
    parser.add_argument("study", choices=names)
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the study's")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="FACTOR=WORD",
        help="runs with this word of a factor; give it several times for more words or factors",
    )
    parser.add_argument(
        "--again",
        type=Path,
        metavar="FILE",
        help="make the recorded runs anew, record them in FILE and compare",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    study, path = read_study(arguments.study), RESULTS / f"{arguments.study}.json"
    only: dict[str, list[str]] = {}
    for factor, _, word in (each.partition("=") for each in arguments.only):
        check_word(study, factor, word)
        only.setdefault(factor, []).append(word)
    if arguments.again:
        if arguments.again.resolve() == path:
            parser.error("--again: give a file of its own, beside the record")
        rows = list(recorded_rows(study, read_record(path), arguments.seeds))
    else:
        rows = list(rows_of(study, arguments.seeds or list(range(study.scale.seeds))))
    with Screen() as screen:
        harness = Study(arguments.work, study.data, "cpu", screen, settings=study.scale)
        make(study, harness, arguments.again or path, chosen(rows, only))
    if arguments.again is not None:
        print(*beside(study, read_record(path), read_record(arguments.again)), sep="\n")
    elif study.page is not None:
        fill(study.page, arguments.study, table_of(study, read_record(path)))


def command() -> int:
    """The exit status of `main`; what is wrong with the command's words, or its data, is one line."""
    try:
        main()
    except Interrupted as stop:
        return stop.status
    except Exception as error:
        status, line = (2, str(error)) if isinstance(error, Refused) else explain(error)
        if status != 2:
            raise
        print(line, file=sys.stderr)
        return status
    return 0


if __name__ == "__main__":
    sys.exit(command())
