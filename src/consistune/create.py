"""The whole job on one's own images: look, plan, train a teacher, tune it, measure, and write a page.

Everything lies in one folder: data/, the recipes teacher.yaml and tuned.yaml, the runs teacher/ and tuned/,
results.json and report.html. Run again, the job takes what is there and continues.
"""

import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consistune.data.images import DataSplit, ImageSet
from consistune.errors import UserError
from consistune.models import default_sampler, draw_sheet, sample
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.pages.create import create_page
from consistune.pages.page import counted
from consistune.recipe import Recipe, read_recipe, to_yaml
from consistune.recipe.plan import Given, make_plan
from consistune.recipe.scaled import scaled_recipe
from consistune.reproduce.judge import Judge
from consistune.reproduce.runs import train_run
from consistune.system.files import write_atomically
from consistune.system.progress import Screen

TEACHER, TUNED = "mnist10k-edm", "mnist10k-sct"
"""The recipes that the job begins with: small networks in minutes to hours."""
TEACHER_SHARE, TUNED_SHARE = 0.5, 0.35
"""Of the time; the rest is for measuring and the page."""
FEWEST_TEACHER, FEWEST_TUNED = 40_000, 20_000
"""Training images without which the pictures would be grey blobs (tried on emoji of 32×32)."""
FEWEST_IMAGES, SHOWN, TIMED_STEPS = 16, 40, 6
PARTS = {"train.checkpoint_images": 4, "train.log_images": 100}
"""Keys of the recipes → into how many parts they divide a training."""


@dataclass(frozen=True)
class Look:
    """What the images are.

    Attributes:
        duplicates: images that are equal to an earlier one.
        smallest_class: the number of images of the smallest class.
    """

    images: int
    shape: tuple[int, int, int]
    classes: int
    smallest_class: int
    duplicates: int

    @classmethod
    def at(cls, images: ImageSet) -> "Look":
        digests = {hashlib.sha256(image.numpy().tobytes()).digest() for image in images.images}
        sizes = torch.bincount(images.labels, minlength=len(images.class_names))
        return cls(
            len(images),
            images.image_shape,
            len(images.class_names),
            int(sizes.min()),
            len(images) - len(digests),
        )


@dataclass(frozen=True)
class Forecast:
    """What a job will cost: training images, images a second, minutes in all."""

    teacher_images: int
    tuned_images: int
    teacher_rate: float
    tuned_rate: float

    @property
    def minutes(self) -> float:
        training = self.teacher_images / self.teacher_rate + self.tuned_images / self.tuned_rate
        return training / (TEACHER_SHARE + TUNED_SHARE) / 60


def check_images(images: ImageSet, conditional: bool) -> None:
    """Raises UserError for images that cannot be learned from: too few, or of sides that no network takes."""
    if images.latents is not None:
        what = "is a set of latents, and this command makes its own choice of pictures"
        raise UserError(what, images.name, "give the pictures, or train emoji64-latent-edm with data=…")
    _, height, width = images.image_shape
    if len(images) < FEWEST_IMAGES:
        raise UserError(
            f"{len(images)} images are too few", images.name, f"give {FEWEST_IMAGES}, better 500 or more"
        )
    if height != width or height % 8:
        raise UserError(
            f"images of {height}×{width} do not fit the networks here",
            images.name,
            f"give --size {max(8, min(height, width) // 8 * 8)}",
        )
    sizes = torch.bincount(images.labels, minlength=len(images.class_names))
    if conditional and int(sizes.min()) < 2:
        name = images.class_names[int(sizes.argmin())]
        raise UserError(
            f"the class {name!r} has {int(sizes.min())} image", images.name, "add images, or give --no-labels"
        )


def network(shape: tuple[int, int, int]) -> dict[str, Any]:
    """A network that fits images of this shape: an MLP up to 8×8, else a U-Net over 8×8 patches."""
    side = shape[1]
    if side == 8:
        return {"kind": "mlp", "width": 256, "blocks": 3, "expansion": 4, "embedding": 128, "dropout": 0.1}
    return {
        "kind": "patch-unet",
        "patch": side // 8,
        "model_channels": 64 if shape[0] == 1 else 96,
        "channel_mult": [1, 2],
        "num_blocks": 2,
        "dropout": 0.1,
    }


class Job:
    """One job in a folder. `plan` makes the recipes, `run` does the work."""

    def __init__(
        self, out: Path, data: DataSplit, data_name: str, screen: Screen, device: torch.device
    ) -> None:
        self.out, self.data, self.data_name = out, data, data_name
        self.screen, self.device = screen, device

    @property
    def planned(self) -> bool:
        """An earlier call has written the recipes."""
        return all(self._recipe_file(name).exists() for name in ("teacher", "tuned"))

    def plan(self, seconds: float, conditional: bool) -> Forecast:
        """Time a few steps and write the recipes that fit the time.

        Raises UserError, with the time that would do, where it is too short.
        """
        check_images(self.data.train, conditional)
        rates = [self._rate(self._recipe(name, conditional, FEWEST_TEACHER)) for name in (TEACHER, TUNED)]
        counts = [int(seconds * s * r) for s, r in zip((TEACHER_SHARE, TUNED_SHARE), rates, strict=True)]
        enough = max(
            fewest / rate / share
            for fewest, rate, share in zip(
                (FEWEST_TEACHER, FEWEST_TUNED), rates, (TEACHER_SHARE, TUNED_SHARE), strict=True
            )
        )
        if seconds < enough:
            raise UserError(
                f"{seconds / 60:.0f} minutes are too short for these images on this machine",
                "--time",
                f"give {math.ceil(enough / 60)}m or more, or a smaller --size",
            )
        for name, base, images in zip(("teacher", "tuned"), (TEACHER, TUNED), counts, strict=True):
            write_atomically(self._recipe_file(name), to_yaml(self._recipe(base, conditional, images)))
        return Forecast(*counts, *rates)

    def run(self) -> Path:
        """Train, tune, measure; returns the page. Raises training.run.Interrupted after a signal."""
        recipes = {name: read_recipe(str(self._recipe_file(name))) for name in ("teacher", "tuned")}
        for name, recipe in recipes.items():
            train_run(self.out / name, recipe, self.screen, draw=self._draw, device=self.device)
        models = {name: store.load(self.out / name / "model", self.device) for name in recipes}
        results = self._results(models)
        write_atomically(self.out / "results.json", json.dumps(results, indent=1))
        page = self.out / "report.html"
        pictures = {
            f"{row['name']}: {counted(row['evaluations'], 'evaluation')} an image": sample(
                models[row["model"]], range(SHOWN), row["steps"]
            )
            for row in results["rows"]
        }
        real = torch.linspace(0, len(self.data.train) - 1, SHOWN).long()
        pictures["Training images"] = self.data.train.images[real]
        write_atomically(page, create_page({**results, "pictures": pictures}))
        return page

    def _recipe_file(self, name: str) -> Path:
        return self.out / f"{name}.yaml"

    def _recipe(self, base: str, conditional: bool, images: int) -> Recipe:
        """A recipe of the package for these data; the tuned one starts from the teacher's run."""
        settings: dict[str, Any] = {key: max(images // parts, 64) for key, parts in PARTS.items()}
        if base == TEACHER:
            settings["network"] = network(self.data.train.image_shape)
        else:
            settings["start_from"] = str(self.out / "teacher" / "model")
        return scaled_recipe(base, self.data_name, conditional, images, settings)

    def _rate(self, recipe: Recipe) -> float:
        """Training images a second, from a few steps after the first two."""
        fresh = None
        if recipe.start_from is not None:
            own = self._recipe(TEACHER, recipe.conditional, FEWEST_TEACHER)
            fresh = make_plan(own, self.device, Given(self.data)).model
            recipe = recipe.model_copy(update={"start_from": None})
        trainer = make_plan(recipe, self.device, Given(self.data, fresh)).trainer(self.device)
        steps = trainer.steps()
        for _ in range(2):
            next(steps)
        began = time.perf_counter()
        for _ in range(TIMED_STEPS):
            next(steps)
        return TIMED_STEPS * trainer.options.batch / (time.perf_counter() - began)

    def _draw(self, model: Preconditioned, path: Path) -> None:
        draw_sheet(model, path)
        self.screen.say(f"pictures: {path}")

    def _results(self, models: dict[str, Preconditioned]) -> dict[str, Any]:
        """Distances of the teacher, the untuned teacher in one step, and the tuned model in one and two."""
        judge = Judge(self.data, min(2_000, max(256, len(self.data.train))), None, self.screen, self.device)
        try:
            features = judge.suite.setup.extractor.name
        except UserError as error:
            features = None
            self.screen.say(f"no distances: {error}")
        rows = []
        for name, key, steps in (
            ("Teacher", "teacher", 18),
            ("Teacher, forced to one step", "teacher", 1),
            ("Tuned", "tuned", 1),
            ("Tuned", "tuned", 2),
        ):
            model, sampler = models[key], default_sampler(models[key], steps)
            began = time.perf_counter()
            images = judge.draw(model, sampler)
            seconds = (time.perf_counter() - began) / judge.samples
            evaluations = int(sampler.evaluations)  # type: ignore[attr-defined]
            row = {"name": name, "model": key, "steps": steps, "evaluations": evaluations, "seconds": seconds}
            if features is not None:
                measured = judge.of_images(images, judge.labels if model.num_classes else None)
                row["distance"], row["novelty"] = measured["frechet_train"], measured["memorisation"]
            rows.append(row)
            self.screen.say(f"{name}, {counted(evaluations, 'evaluation')} an image: {_shown(row)}")
        held_out, distance = self.data.held_out, None
        if features is not None and held_out is not None:
            distance = judge.of_images(held_out.images, None)["frechet_train"]
        return {
            "folder": str(self.out),
            "look": Look.at(self.data.train).__dict__,
            "samples": judge.samples,
            "features": features,
            "rows": rows,
            "held_out": distance,
            "held_out_images": 0 if held_out is None else len(held_out),
        }


def _shown(row: dict[str, Any]) -> str:
    distance = f"distance {row['distance']:.2f} %, " if "distance" in row else ""
    return f"{distance}{1 / row['seconds']:,.0f} images a second"
