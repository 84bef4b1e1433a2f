"""Table 1 and section 3: what is wrong with each method's reward estimate along t."""

from collections.abc import Mapping
from functools import partial

from consistune.analyze import discretisation, named_estimators, target_moments
from consistune.analyze.measures import ROUNDING
from consistune.analyze.worlds import Empirical, Mixture, World
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.posterior.mean import Reference
from consistune.pages.plots import Axis, Plot
from consistune.reproduce.results import Outcome, Row, over_seeds, series
from consistune.reproduce.spec import Mdp, MdpBudget, RunSpec, at_scale
from consistune.reproduce.study import Study
from consistune.reproduce.toy import BANK, MIXTURE, SCHEDULE, bank_of, diffusion_model
from consistune.train.lock import shared

CURVES = ("squared_bias", "variance")


def along_t(study: Study, spec: Mdp) -> Outcome:
    """Bias and variance against t, and what one solver step costs, on the mixture and on the study's data."""
    budget = at_scale(spec.scales, study.scale, "mdp")
    seeds, asked = study.seeds_of(budget.seeds), RunSpec(recipe=spec.teacher)
    teachers = shared({seed: partial(study.teacher, asked, seed) for seed in seeds}, study.screen.say)
    rows: list[Row] = []
    teacher_images = 0
    for seed, teacher in teachers.items():
        rows += _measured(
            "mixture", Mixture(MIXTURE, SCHEDULE), _on_mixture(budget, seed), spec, budget, seed
        )
        train = study.data.train
        labels = train.labels if study.recipe(asked, seed).conditional else None
        world = Empirical(train.images, labels, SCHEDULE)
        estimators = named_estimators(train.images, labels, SCHEDULE)
        if teacher is not None:
            estimators["CD"] = Teacher(teacher.model())
            teacher_images = teacher.images
        rows += _measured(study.name, world, estimators, spec, budget, seed)
    summary = over_seeds(
        [row for row in rows if "estimate" in row], ("world", "estimate", "t"), (*CURVES, "bias_spread")
    ) + over_seeds([row for row in rows if "gap" in row], ("world", "t", "gap"), ("euler", "heun"))
    found = Outcome(rows, summary, teacher_images=teacher_images)
    for name in ("mixture", study.name):
        _draw(found, name, summary)
    return found


def _on_mixture(budget: MdpBudget, seed: int) -> dict[str, NoiseEstimator]:
    bank = bank_of(seed)
    return {
        "one-sample": OneSample(),
        "batch": ScoreIdentity(SCHEDULE),
        f"{BANK} others": ScoreIdentity(SCHEDULE, Reference.ungrouped(bank_of(seed + 1000))),
        "CD": Teacher(diffusion_model(bank, budget.steps, seed)),
    }


def _measured(
    name: str, world: World, estimators: Mapping[str, NoiseEstimator], spec: Mdp, budget: MdpBudget, seed: int
) -> list[Row]:
    moments = target_moments(
        world,
        dict(estimators),
        spec.times,
        SCHEDULE,
        batches=budget.batches,
        repeats=budget.repeats,
        seed=seed,
    )
    return [
        {"world": name, "seed": seed, "t": m.t, "estimate": m.estimator}
        | {"squared_bias": m.squared_bias, "bias_spread": m.bias_spread, "variance": m.variance}
        for m in moments
    ] + [
        {"world": name, "seed": seed, "t": s.t, "gap": s.gap, "euler": s.euler, "heun": s.heun}
        for s in discretisation(world, SCHEDULE, seed=seed)
    ]


def _draw(found: Outcome, name: str, summary: list[Row]) -> None:
    ratio = Axis("t", log=True)
    errors = [row for row in summary if row["world"] == name and "estimate" in row]
    scattered = [row for row in errors if row["variance"] > ROUNDING]
    biased = [row for row in errors if row["squared_bias"] > max(ROUNDING, 3 * row["bias_spread"])]
    found.plots[f"variance-{name}"] = Plot(
        series(scattered, "estimate", "t", "variance"), ratio, Axis("variance", log=True), f"{name}: variance"
    )
    found.plots[f"bias-{name}"] = Plot(
        series(biased, "estimate", "t", "squared_bias"),
        ratio, Axis("squared bias", log=True), f"{name}: squared bias, beyond three standard errors",
    )  # fmt: skip
    steps = [row for row in summary if row["world"] == name and "gap" in row]
    lines = {
        f"{method}, t = {t:g}": series([r for r in steps if r["t"] == t], "t", "gap", method)[str(t)]
        for method in ("euler", "heun")
        for t in dict.fromkeys(row["t"] for row in steps)
    }
    found.plots[f"steps-{name}"] = Plot(
        lines, Axis("(t − r)/t", log=True), Axis("error of one step", log=True), f"{name}: discretisation"
    )
