"""One folder of runs on one data set at one scale: what experiments share is trained and measured once.

    FOLDER/runs/KIND-HASH-SEED/      a run's folder (train.run); its curve is in metrics.jsonl
    FOLDER/runs/…/measured.json      what was measured on the finished run, by question
    FOLDER/EXPERIMENT/               data.csv, data.json, plots, report.html
    FOLDER/EXPERIMENT,KEY=VALUE/     the same with keys that were set

A run is known by the hash of its resolved recipe, so that experiments which ask for the same training share
it, and a study that was stopped goes on where it was.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from consistune.core.sampling import PhasedSteps, Sampler
from consistune.data.images import DataSplit, load_data
from consistune.metrics.scores import Scores, score_suite, scores
from consistune.metrics.suite import Suite
from consistune.models import default_sampler, sample
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.recipe import Recipe, read_recipe, to_yaml, validate
from consistune.recipe.plan import make_plan
from consistune.reproduce.spec import RunSpec, Scale, at_scale, family_of
from consistune.reproduce.training import curve, named, trained, with_points
from consistune.system.files import write_atomically
from consistune.system.progress import Screen
from consistune.train.metrics_file import MetricsFile


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        digest: of the resolved recipe without its seed and paths: the same for all seeds, on all machines.
        images: seen by this run. teacher: the run it started from, where we trained that.
    """

    name: str
    seed: int
    folder: Path
    digest: str
    images: int
    teacher: "Run | None" = None

    @property
    def minutes(self) -> float:
        """Of training, measuring apart, from the log; its teacher's apart."""
        minutes, then = 0.0, 0
        for record in MetricsFile(self.folder).records():
            if "images_per_second" in record:
                minutes += (record["images"] - then) / record["images_per_second"] / 60
                then = record["images"]
        return minutes

    @property
    def teacher_images(self) -> int:
        return 0 if self.teacher is None else self.teacher.images

    @property
    def curve(self) -> list[dict[str, Any]]:
        """{"images": …, SAMPLER: {MEASURE: …}} at each measured point."""
        return curve(self.folder)

    def model(self, device: torch.device | str = "cpu") -> Preconditioned:
        return store.load(self.folder / "model", device)

    def snapshot(self, share: str, device: torch.device | str = "cpu") -> Preconditioned:
        """The averaged model at a share of training: "25%"."""
        return store.load(self.folder / "snapshots" / share, device)


class Study:
    """The runs of one data set and scale, made when they are asked for."""

    def __init__(
        self,
        out: Path,
        data: str,
        scale: Scale,
        screen: Screen,
        *,
        seeds: int | None = None,
        device: torch.device | str = "cpu",
        unconditional: bool = False,
        student: tuple[str, ...] = (),
        overrides: tuple[str, ...] = (),
    ) -> None:
        """Raises UserError for data that no experiment knows, or a scale that they do not have.

        Args:
            seeds: instead of the scale's number of them.
            unconditional: train teacher and students without the labels, as the paper does on CIFAR-10; the
                references of a class become all images.
            student: KEY=VALUE for every consistency model of the study, after the scale's own and before what
                an experiment varies; all methods get them, their teachers do not.
            overrides: for every recipe, after all others.
        """
        self.name, self.family = family_of(data)
        self.data_name, self.scale, self.screen, self.device = data, scale, screen, device
        self._seeds = seeds
        self.budget = at_scale(self.family.scales, scale, self.name)
        self.seeds = self.seeds_of(self.budget.seeds)
        self.unconditional, self.student, self.overrides = unconditional, student, overrides
        self.title = ", ".join([self.name, *["unconditional"] * unconditional, *student])
        self.folder = out / f"{self.name}-{'unconditional-' if unconditional else ''}{scale}"

    @property
    def command(self) -> str:
        """The options that make this study again."""
        asked = "" if self._seeds is None else f" --seeds {self._seeds}"
        labels = " --unconditional" if self.unconditional else ""
        keys = "".join(f" --set {shlex.quote(key)}" for key in self.student)
        return f"--data {self.data_name} --scale {self.scale}{labels}{keys}{asked}"

    def results(self, name: str) -> Path:
        """The folder of an experiment; another one for other keys, while all share their runs."""
        return self.folder / re.sub(r"[^\w.=,-]+", "_", ",".join([name, *self.student]))

    def seeds_of(self, usual: int) -> range:
        """As many as were asked for, else as is usual."""
        return range(usual if self._seeds is None else self._seeds)

    @cached_property
    def data(self) -> DataSplit:
        return load_data(self.data_name)

    @cached_property
    def suite(self) -> Suite:
        """Made once, with the statistics of the training images."""
        self.screen.say("measuring the reference images")
        return score_suite(self.data, self.family.features, self.device)

    @cached_property
    def labels(self) -> Tensor:
        """Of the samples that are measured: the classes in turn."""
        return torch.arange(self.budget.samples) % len(self.data.train.class_names)

    def judge(self, model: Preconditioned, sampler: Sampler, **options: Any) -> Scores:
        """Scores of samples by a sampler, the same noise for every model; `options` as for `sample`."""
        labels = self.labels if model.num_classes else None
        seeds = range(self.budget.samples)
        images = sample(model, seeds, condition=labels, sampler=sampler, **options)
        return scores(self.suite, images, labels)

    def check(self, spec: RunSpec) -> None:
        """Raises UserError for a run that cannot be trained, before its teacher or any other is."""
        recipe, teacher, _, folder = self._wanted(spec, self.seeds[0])
        if folder.exists():
            return
        if teacher is not None:  # in the place of its trained weights
            recipe = recipe.model_copy(update={"start_from": None, "network": teacher.network})
        make_plan(recipe, self.device).trainer(self.device)

    def run(self, name: str, spec: RunSpec, seed: int) -> Run:
        """The finished run of a spec, trained from its teacher if it is not there."""
        recipe, _, digest, folder = self._wanted(spec, seed)
        teacher = self.teacher(spec, seed)
        if teacher is not None:
            recipe = recipe.model_copy(update={"start_from": str(teacher.folder / "model")})

        def evaluate(model: Preconditioned) -> dict[str, float]:
            chosen = samplers(model, spec.etas)
            return named({word: self.judge(model, sampler) for word, sampler in chosen.items()})

        self._train(folder, with_points(recipe, self.budget.points), evaluate)
        return Run(name, seed, folder, digest, recipe.train.images, teacher)

    def teacher(self, spec: RunSpec, seed: int) -> Run | None:
        """The diffusion model that a spec's run starts from; None where it is a published one."""
        recipe = self._teacher_recipe(self.recipe(spec, seed))
        if recipe is None:
            return None
        digest = digest_of(recipe)
        folder = self._place(f"{recipe.objective}-{digest}", seed)
        self._train(folder, recipe, None)
        return Run("teacher", seed, folder, digest, recipe.train.images)

    def recipe(self, spec: RunSpec, seed: int) -> Any:
        """What a spec trains, as the scale has it."""
        budget = (*self.budget.student, *self.student)
        recipe = self._recipe(self.family.recipes[spec.recipe], budget, spec.set, seed)
        return recipe if spec.phases is None else _phased(recipe, spec.phases)

    def measured(self, run: Run, question: str, measure: Callable[[], Scores]) -> dict[str, Any]:
        """What was measured on a finished run, asked once for each question."""
        path = run.folder / "measured.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        key = f"{question}, {self.budget.samples} samples"
        if key not in known:
            known[key] = asdict(measure())
            write_atomically(path, json.dumps(known, indent=1))
        return dict(known[key])

    def _wanted(self, spec: RunSpec, seed: int) -> tuple[Any, Any, str, Path]:
        """A spec's recipe, its teacher's, its digest, and the folder of its run."""
        recipe = self.recipe(spec, seed)
        teacher = self._teacher_recipe(recipe)
        digest = digest_of(recipe, recipe.start_from if teacher is None else digest_of(teacher))
        # Not by the recipe's name: two recipes that say the same are one training.
        stem = f"{recipe.estimator.kind}-{_short(digest, *map(str, spec.etas))}"
        return recipe, teacher, digest, self._place(stem, seed)

    def _teacher_recipe(self, student: Recipe) -> Any:
        """Of `runs/NAME/model`, trained here by the recipe of that name; None for other weights."""
        parts = Path(student.start_from or "").parts
        if len(parts) != 3 or parts[0] != "runs":
            return None
        return self._recipe(parts[1], self.budget.teacher, (), student.train.seed)

    def _recipe(self, name: str, budget: tuple[str, ...], own: tuple[str, ...], seed: int) -> Any:
        keys = [*budget, *own, f"train.seed={seed}", "train.trackers=[]", *self.overrides]
        if self.data_name != self.name:
            keys.append(f"data={self.data_name}")
        recipe = read_recipe(name, keys)
        return _without_labels(recipe) if self.unconditional else recipe

    def _place(self, stem: str, seed: int) -> Path:
        return self.folder / "runs" / f"{stem}-{seed}"

    def _train(self, folder: Path, recipe: Recipe, evaluate: Any) -> None:
        _follow(folder / "recipe.yaml", recipe)
        trained(folder, recipe, self.screen, name=folder.name, evaluate=evaluate, device=self.device)


def _follow(saved: Path, recipe: Recipe) -> None:
    """A study that was moved took its teachers along: have a run's recipe say where its teacher is now."""
    if recipe.start_from is None or not saved.is_file():
        return
    text = saved.read_text(encoding="utf-8")
    before = yaml.safe_load(text)["start_from"]
    same_name = Path(before).parts[-2:] == Path(recipe.start_from).parts[-2:]
    if same_name and text == to_yaml(recipe.model_copy(update={"start_from": before})):
        write_atomically(saved, to_yaml(recipe))


def samplers(model: Preconditioned, etas: tuple[float, ...]) -> dict[str, Sampler]:
    """What a model is measured by: one and two steps, or a phased one by each η."""
    if model.card.edges:
        return {f"eta={eta:g}": PhasedSteps(model.card.edges, eta=eta) for eta in etas}
    return {f"steps={steps}": default_sampler(model, steps) for steps in (1, 2)}


def _phased(recipe: Recipe, phases: int) -> Any:
    plain = json.loads(recipe.model_dump_json())
    plain["pairs"] = {"kind": "phased", "edges": phases, "pairs": plain["pairs"]}
    return validate(plain, f"phases={phases}")


def _without_labels(recipe: Recipe) -> Any:
    plain = json.loads(recipe.model_dump_json())
    plain["conditional"] = False
    estimator = plain.get("estimator")  # a teacher has none; a blend has one inside
    while estimator is not None:
        if estimator.get("reference") == "class":
            estimator["reference"] = "all"
        estimator = estimator.get("estimator")
    return validate(plain, "--unconditional")


def digest_of(recipe: Recipe, origin: str | None = None) -> str:
    """Of a recipe without its seed and paths; `origin` says what it starts from: its teacher's digest."""
    train: Any = recipe.train
    same = {
        "train": train.model_copy(update={"seed": 0}),
        "start_from": origin,
        "data": Path(recipe.data).name,
    }
    return _short(to_yaml(recipe.model_copy(update=same)))


def _short(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
