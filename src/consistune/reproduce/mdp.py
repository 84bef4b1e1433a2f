"""Table 1 and section 3: bias, variance and discretisation of each method's reward estimate along t."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from consistune.analyze.measures import ROUNDING, discretisation, named_estimators, target_moments
from consistune.analyze.worlds import Empirical, Mixture, World
from consistune.core.estimators import NoiseEstimator, OneSample, ScoreIdentity, Teacher
from consistune.core.posterior.mean import Reference
from consistune.pages.plots import Axis, Plot
from consistune.reproduce.experiment import Experiment
from consistune.reproduce.results import Outcome, Row, over_seeds, series
from consistune.reproduce.runs import Run
from consistune.reproduce.spec import Positive, RunSpec, Scale, Strict, at_scale
from consistune.reproduce.study import Study
from consistune.reproduce.toy import BANK, MIXTURE, SCHEDULE, bank_of, diffusion_model


class MdpScale(Strict):
    """Steps of the mixture's diffusion model; batches of four x_t; repeats of all else at each; seeds."""

    steps: Positive
    batches: Positive
    repeats: Annotated[int, Field(ge=2)]
    seeds: Positive


class Mdp(Experiment):
    """Bias and variance against t, and the error of one solver step, on the mixture and on the study's data.

    `teacher` is the recipe, by its role, whose diffusion model distillation is measured with.
    """

    tunes: ClassVar[bool] = False

    kind: Literal["mdp"]
    times: tuple[float, ...]
    teacher: str
    scales: dict[Scale, MdpScale]

    def make(self, study: Study) -> Outcome:
        scale: MdpScale = at_scale(self.scales, study.scale, "mdp")
        seeds, spec = study.seeds_of(scale.seeds), RunSpec(recipe=self.teacher)
        teachers = study.share({seed: partial(study.teacher, spec, seed) for seed in seeds})
        conditional = study.recipe(spec, 0).conditional
        rows: list[Row] = []
        for seed, teacher in zip(seeds, teachers, strict=True):
            mixture = Mixture(MIXTURE, SCHEDULE)
            rows += self._measure("mixture", mixture, _on_mixture(scale, seed), scale, seed)
            world, estimators = _on_data(study, conditional, teacher)
            rows += self._measure(study.name, world, estimators, scale, seed)
        values = ("squared_bias", "variance", "bias_spread")
        summary = over_seeds(
            [row for row in rows if "estimate" in row], ("world", "estimate", "t"), values
        ) + over_seeds([row for row in rows if "gap" in row], ("world", "t", "gap"), ("euler", "heun"))
        images = max(0 if teacher is None else teacher.images for teacher in teachers)
        outcome = Outcome(rows, summary, teacher_images=images)
        for name in ("mixture", study.name):
            _draw(outcome, name)
        return outcome

    def _measure(
        self, name: str, world: World, estimators: Mapping[str, NoiseEstimator], scale: MdpScale, seed: int
    ) -> list[Row]:
        start: Row = {"world": name, "seed": seed}
        options: Any = {"batches": scale.batches, "repeats": scale.repeats, "seed": seed}
        return [
            start
            | {"t": m.t, "estimate": m.estimator}
            | {"squared_bias": m.squared_bias, "bias_spread": m.bias_spread, "variance": m.variance}
            for m in target_moments(world, dict(estimators), self.times, **options)
        ] + [
            start | {"t": s.t, "gap": s.gap, "euler": s.euler, "heun": s.heun}
            for s in discretisation(world, seed=seed)
        ]


def _on_mixture(scale: MdpScale, seed: int) -> dict[str, NoiseEstimator]:
    return {
        "one-sample": OneSample(),
        "batch": ScoreIdentity(SCHEDULE),
        f"{BANK} others": ScoreIdentity(SCHEDULE, Reference.ungrouped(bank_of(seed + 1000))),
        "CD": Teacher(diffusion_model(bank_of(seed), scale.steps, seed)),
    }


def _on_data(study: Study, conditional: bool, teacher: Run | None) -> tuple[World, dict[str, NoiseEstimator]]:
    train = study.data.train
    labels = train.labels if conditional else None
    estimators = dict(named_estimators(train.exact, labels, SCHEDULE))
    if teacher is not None:
        estimators["CD"] = Teacher(teacher.model())
    return Empirical(train.exact, labels, SCHEDULE), estimators


def _draw(outcome: Outcome, name: str) -> None:
    ratio = Axis("t", log=True)
    lines = [row for row in outcome.summary if row["world"] == name]
    errors = [row for row in lines if "estimate" in row]
    scattered = [row for row in errors if row["variance"] > ROUNDING]
    biased = [row for row in errors if row["squared_bias"] > max(ROUNDING, 3 * row["bias_spread"])]
    outcome.plots[f"variance-{name}"] = Plot(
        series(scattered, "estimate", "t", "variance"), ratio, Axis("variance", log=True), f"{name}: variance"
    )
    outcome.plots[f"bias-{name}"] = Plot(
        series(biased, "estimate", "t", "squared_bias"),
        ratio, Axis("squared bias", log=True), f"{name}: squared bias, beyond three standard errors",
    )  # fmt: skip
    labelled = [row | {"label": f"t = {row['t']:g}"} for row in lines if "gap" in row]
    steps = {
        f"{method}, {label}": line
        for method in ("euler", "heun")
        for label, line in series(labelled, "label", "gap", method).items()
    }
    outcome.plots[f"steps-{name}"] = Plot(
        steps, Axis("(t − r)/t", log=True), Axis("error of one step", log=True), f"{name}: discretisation"
    )
