"""One folder of runs on one data set at one scale: what experiments share is trained and measured once.

    FOLDER/runs/KIND-HASH-SEED/      a run's folder (training.run); its curve is in metrics.jsonl
    FOLDER/runs/…/measured.json      what was measured on the finished run, by question
    FOLDER/EXPERIMENT/               data.csv, data.json, plots, report.html
    FOLDER/EXPERIMENT,KEY=VALUE/     the same with keys that were set

A run is known by the hash of its resolved recipe, so that experiments which ask for the same training share
it, and a study that was stopped continues where it was.
"""

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from consistune.core.sampling import PhasedSteps, Sampler
from consistune.data.images import DataSplit, load_data
from consistune.models import default_sampler
from consistune.nn.precond import Preconditioned
from consistune.recipe import Recipe, read_recipe, to_yaml, validate
from consistune.recipe.plan import make_plan
from consistune.reproduce.judge import Judge
from consistune.reproduce.runs import Run, train_run, with_points
from consistune.reproduce.spec import RunSpec, Scale, ScaleSettings, at_scale, settings_of
from consistune.system.files import read_json, write_atomically
from consistune.system.progress import Screen
from consistune.training.folder import RECIPE, read_recipe_of
from consistune.training.lock import shared

Made = TypeVar("Made")


class Study:
    """The runs of one data set and scale, each trained when it is first asked for."""

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
        settings: ScaleSettings | None = None,
    ) -> None:
        """Raises UserError for data that no experiment knows, or a scale that they do not have.

        Args:
            seeds: number of seeds, instead of the scale's.
            unconditional: train teacher and students without the labels, as the paper does on CIFAR-10; the
                references of a class become all images.
            student: KEY=VALUE for every consistency model of the study, after the scale's own and before what
                an experiment varies. Teachers do not get them.
            overrides: KEY=VALUE for every recipe, after all others.
            settings: instead of the scale's.
        """
        self.name, data_settings = settings_of(data)
        self.roles, self.features = data_settings.recipes, data_settings.features
        self.settings: ScaleSettings = settings or at_scale(data_settings.scales, scale, self.name)
        self.data_name, self.scale, self.screen, self.device = data, scale, screen, device
        self._seeds = seeds
        self.seeds = self.seeds_of(self.settings.seeds)
        self.unconditional, self.student, self.overrides = unconditional, student, overrides
        self.title = ", ".join([self.name, *["unconditional"] * unconditional, *student])
        self.folder = out / f"{self.name}-{'unconditional-' if unconditional else ''}{scale}"

    @property
    def command(self) -> str:
        """The options of `consistune reproduce` that make this study again."""
        seeds = "" if self._seeds is None else f" --seeds {self._seeds}"
        labels = " --unconditional" if self.unconditional else ""
        keys = "".join(f" --set {shlex.quote(key)}" for key in self.student)
        return f"--data {self.data_name} --scale {self.scale}{labels}{keys}{seeds}"

    def results(self, name: str) -> Path:
        """The folder of an experiment; other keys have another one, while all share the runs."""
        return self.folder / re.sub(r"[^\w.=,-]+", "_", ",".join([name, *self.student]))

    def seeds_of(self, number: int) -> range:
        """The seeds of an experiment that has `number` of them unless the user says otherwise."""
        return range(number if self._seeds is None else self._seeds)

    @cached_property
    def data(self) -> DataSplit:
        return load_data(self.data_name)

    @cached_property
    def judge(self) -> Judge:
        """Measures models: see `Judge`."""
        return Judge(self.data, self.settings.samples, self.features, self.screen, self.device)

    def runs(self, specs: Mapping[str, RunSpec]) -> list[Run]:
        """Every run of every seed, one seed after the other, so that a stopped study has whole seeds.

        Raises UserError, before anything is trained, for a run that cannot be. The same command, given on
        several cards or in several terminals, shares the work.
        """
        for spec in specs.values():
            self._check(spec)
        jobs = itertools.product(self.seeds, specs.items())
        return self.share({(seed, name): partial(self.run, name, spec, seed) for seed, (name, spec) in jobs})

    def share(self, jobs: Mapping[Any, Callable[[], Made]]) -> list[Made]:
        """Do the jobs that no other program does, then wait for the others (see training.lock.shared)."""
        return list(shared(jobs, self.screen.say).values())

    def run(self, name: str, spec: RunSpec, seed: int) -> Run:
        """The finished run of a spec, trained if it is not there, and its teacher before it."""
        recipe, digest, folder = self._training(spec, seed)
        images = recipe.train.images
        teacher = self.teacher(spec, seed)
        if teacher is not None:
            recipe = with_teacher(recipe, str(teacher.folder / "model"))
        evaluate = None
        if _is_student(recipe):
            recipe = with_points(recipe, self.settings.points)
            evaluate = self.judge.for_log(partial(samplers, etas=spec.etas))
        update_paths(folder, recipe)
        train_run(
            folder,
            recipe,
            self.screen,
            evaluate=evaluate,
            all_averages=spec.all_averages,
            device=self.device,
        )
        return Run(name, seed, folder, digest, images, teacher)

    def teacher(self, spec: RunSpec, seed: int) -> Run | None:
        """The diffusion model that a spec's run starts from; None where the study does not train it."""
        teacher = _teacher_of(self.recipe(spec, seed))
        return None if teacher is None else self.run("teacher", teacher, seed)

    def recipe(self, spec: RunSpec, seed: int) -> Any:
        """The resolved recipe of a spec at the study's scale."""
        name = self.roles.get(spec.recipe, spec.recipe)
        settings = self.settings
        of_role = (*settings.student, *self.student) if _is_student(read_recipe(name)) else settings.teacher
        keys = [*of_role, *spec.set, f"train.seed={seed}", "train.trackers=[]", *self.overrides]
        if self.data_name != self.name:
            keys.append(f"data={self.data_name}")
        recipe = read_recipe(name, keys)
        if self.unconditional:
            recipe = _without_labels(recipe)
        return recipe if spec.phases is None else _phased(recipe, spec.phases)

    def measured(
        self, run: Run, question: str, measure: Callable[[], dict[str, float | None]]
    ) -> dict[str, Any]:
        """What was measured on a finished run; `measure` is called once for each question."""
        path = run.folder / "measured.json"
        key = f"{question}, {self.settings.samples} samples"
        known = read_json(path) if path.exists() else {}
        if key not in known:
            answer = {key: measure()}
            known = (read_json(path) if path.exists() else {}) | answer  # others measure meanwhile
            write_atomically(path, json.dumps(known, indent=1))
        return dict(known[key])

    def _training(self, spec: RunSpec, seed: int) -> tuple[Any, str, Path]:
        """A spec's recipe, its digest and the folder of its run."""
        recipe = self.recipe(spec, seed)
        teacher = _teacher_of(recipe)
        origin = recipe.start_from if teacher is None else self._training(teacher, seed)[1]
        digest = digest_of(recipe, origin)
        # Not by the recipe's name: two recipes that say the same are one training.
        if _is_student(recipe):
            measured_by = [*map(str, spec.etas), *["all averages"] * spec.all_averages]
            stem = f"{recipe.estimator.kind}-{_short(digest, *measured_by)}"
        else:
            stem = f"{recipe.objective}-{digest}"
        return recipe, digest, self.folder / "runs" / f"{stem}-{seed}"

    def _check(self, spec: RunSpec) -> None:
        """Raises UserError for a run that cannot be trained, before its teacher or any other is."""
        seed = self.seeds[0]
        recipe, _, folder = self._training(spec, seed)
        teacher = _teacher_of(recipe)
        if folder.exists() or (teacher is not None and self._needs_weights(recipe, teacher)):
            return  # it has no plan before its teacher is there
        if teacher is not None:  # its network stands for its weights
            network = self.recipe(teacher, seed).network
            recipe = recipe.model_copy(update={"start_from": None, "network": network})
        make_plan(recipe, self.device).trainer(self.device)

    def _needs_weights(self, recipe: Recipe, teacher: RunSpec) -> bool:
        """Whether the plan needs the weights: for a frozen copy, or for a network that no recipe names."""
        frozen = bool(_frozen_teacher(recipe, ""))
        return frozen or _teacher_of(self.recipe(teacher, self.seeds[0])) is not None


def samplers(model: Preconditioned, etas: tuple[float, ...]) -> dict[str, Sampler]:
    """What a model is measured by: one and two steps, or a phased one by each η."""
    edges = model.card.edges
    if edges and etas:
        return {f"eta={eta:g}": PhasedSteps(tuple(edges), eta=eta) for eta in etas}
    return {f"steps={steps}": default_sampler(model, steps) for steps in (1, 2)}


def digest_of(recipe: Recipe, origin: str | None = None) -> str:
    """Hash of a recipe without its seed and paths; `origin` stands for its weights: its teacher's digest."""
    train: Any = recipe.train
    of_all = {"train": train.model_copy(update={"seed": 0}), "data": Path(recipe.data).name}
    return _short(to_yaml(recipe.model_copy(update={"start_from": origin, **of_all})))


def _short(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_student(recipe: Any) -> bool:
    """Whether the recipe tunes a few-step model: a diffusion recipe has no estimator."""
    return getattr(recipe, "estimator", None) is not None


def _teacher_of(recipe: Recipe) -> RunSpec | None:
    """The recipe NAME where `recipe` starts from `runs/NAME/model`: a study trains it itself."""
    parts = Path(recipe.start_from or "").parts
    return RunSpec(recipe=parts[1]) if len(parts) == 3 and parts[0] == "runs" else None


def _frozen_teacher(recipe: Any, path: str) -> dict[str, Any]:
    """The keys besides `start_from` that name the same model, with `path` in its place."""
    update: dict[str, Any] = {}
    if _is_student(recipe) and getattr(recipe.estimator, "model", None) == recipe.start_from:
        update["estimator"] = recipe.estimator.model_copy(update={"model": path})
    if getattr(recipe, "below", None) == recipe.start_from:
        update["below"] = path
    return update


def with_teacher(recipe: Any, path: str) -> Any:
    """The recipe with its teacher's weights at `path`, wherever it names them."""
    return recipe.model_copy(update={"start_from": path, **_frozen_teacher(recipe, path)})


def update_paths(folder: Path, recipe: Recipe) -> None:
    """Write the present paths of the teacher, and of data beside the run, into the recipe of a run's folder.

    They are others where the run was moved with all of these, or its folder is named otherwise.
    """
    if not (folder / RECIPE).is_file():
        return
    before, old = read_recipe_of(folder), recipe
    if Path(recipe.data).parent == folder.parent and Path(before["data"]).name == Path(recipe.data).name:
        old = old.model_copy(update={"data": before["data"]})
    teacher = before.get("start_from")
    if recipe.start_from and teacher and Path(teacher).parts[-2:] == Path(recipe.start_from).parts[-2:]:
        old = with_teacher(old, teacher)
    if old != recipe and (folder / RECIPE).read_text(encoding="utf-8") == to_yaml(old):
        write_atomically(folder / RECIPE, to_yaml(recipe))


def _phased(recipe: Recipe, phases: int) -> Any:
    plain = recipe.model_dump(mode="json")
    plain["pairs"] = {"kind": "phased", "edges": phases, "pairs": plain["pairs"]}
    return validate(plain, f"phases={phases}")


def _without_labels(recipe: Recipe) -> Any:
    plain = recipe.model_dump(mode="json")
    plain["conditional"] = False
    estimator = plain.get("estimator")  # a diffusion recipe has none; a blend has one inside
    while estimator is not None:
        if estimator.get("reference") == "class":
            estimator["reference"] = "all"
        estimator = estimator.get("estimator")
    return validate(plain, "--unconditional")
