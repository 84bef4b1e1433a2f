"""The tables of studies that a page of docs/ has beside those of benchmarks/tables.py."""

from statistics import mean, median

from records import Row
from study_file import StudyFile
from tables import KEYS, each, grouped, least_to_greatest, markdown, of_groups


def equal_cost_table(study: StudyFile, results: Row) -> str:
    """A line for each word of the factor of `step_ratios`: its cost, and what the runs reached."""
    assert study.step_ratios is not None
    factor = study.step_ratios.factor
    others = [name for name in study.factors if name != factor]
    rows = []
    for word, runs in grouped(results["runs"], lambda run: run[factor]).items():
        ratios, images = results["step_ratios"][word], f"{runs[0]['images']:,}"
        cost = [f"{median(ratios):.2f} {least_to_greatest(ratios)}", images]
        for run in runs:
            last = [loss for _, loss in run["loss"]][-(len(run["loss"]) // 4) :]
            ends = [f"{measures[KEYS[0]]:.1f}" for measures in run["ends"].values()]
            size = f"{run['parameters'] / 1e6:.2f} M"
            rows.append([word, size, *cost, *(run[name] for name in others), f"{mean(last):.3f}", *ends])
    head = [factor, "parameters", f"a step, over {study.step_ratios.base}'s", "images", *others]
    steps = results["runs"][0]["ends"]
    return markdown([*head, "loss, last quarter", *(f"Fréchet distance, {n} steps, %" for n in steps)], rows)


def cost_table(study: StudyFile, results: Row) -> str:
    """What a step of each word costs over the base word's, least to greatest of the rounds."""
    assert study.step_ratios is not None
    base = study.step_ratios.base
    rows = []
    for word, ratios in results["step_ratios"].items():
        memory = results["peak_bytes"][word] / results["peak_bytes"][base]
        rows.append([f"`{word}`", f"{median(ratios):.2f} {least_to_greatest(ratios)}", f"{memory:.2f}"])
    return markdown([study.step_ratios.factor, "time of a step", "peak memory"], rows)


def gain_table(study: StudyFile, results: Row) -> str:
    """A line for each word of the factor of `step_ratios`: what a step costs, and the distances."""
    assert study.step_ratios is not None
    factor = study.step_ratios.factor
    groups = grouped(results["runs"], lambda run: run[factor])
    cost = {
        word: f"{median(ratios):.2f} {least_to_greatest(ratios)}"
        for word, ratios in results["step_ratios"].items()
    }
    lines = [((word, cost[word]), groups[word]) for word in study.factors[factor] if word in groups]
    return of_groups([factor, f"a step, over {study.step_ratios.base}'s"], lines)


def guided_table(study: StudyFile, results: Row) -> str:
    """For each run and worse model the distances without guidance, and at the ω that is best in the mean."""
    factors = list(study.factors)
    rows = []
    for words, runs in grouped(results["runs"], lambda run: tuple(run[f] for f in factors)).items():
        for worse in dict.fromkeys(row["worse"] for row in runs[0]["guided"]):
            cells = []
            for steps in (1, 2):
                plain = [run["curve"][-1][f"steps_{steps}"] for run in runs]
                omega, guided = best_of(runs, worse, steps)
                cells += [_each(plain), f"{_each(guided)} at {omega:g}", _each(guided, KEYS[1])]
            rows.append([*words, worse, *cells])
    head = [f"{n} step{'s' * (n - 1)}{word}" for n in (1, 2) for word in ("", ", best ω", ", held-out")]
    return markdown([*factors, "worse model", *head], rows)


def best_of(runs: list[Row], worse: str, steps: int) -> tuple[float, list[Row]]:
    """The ω with the least mean distance over the runs, and their measures at it."""
    chosen = [row for run in runs for row in run["guided"] if (row["worse"], row["steps"]) == (worse, steps)]
    by_omega = grouped(chosen, lambda row: row["omega"])
    return min(by_omega.items(), key=lambda item: mean(row[KEYS[0]] for row in item[1]))


def _each(measures: list[Row], key: str = KEYS[0]) -> str:
    return each([measure[key] for measure in measures])


def table_of(study: StudyFile, results: Row) -> str:
    """The table of a study that has a page."""
    if study.equal_cost is not None:
        return equal_cost_table(study, results)
    if any(line.omegas for line in study.runs):
        return guided_table(study, results)
    return gain_table(study, results) if study.runs else cost_table(study, results)
