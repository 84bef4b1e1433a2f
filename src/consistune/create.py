"""The whole job on one's own images: look, plan, train a teacher, tune it, measure, and write a page.

Everything lies in one folder: data/, the recipes teacher.yaml and tuned.yaml, the runs teacher/ and tuned/,
results.json and report.html. Run again, the job takes what is there and continues.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from consistune.data.images import DataSplit, ImageSet
from consistune.data.prepare.survey import Survey
from consistune.errors import UserError
from consistune.models import default_sampler, draw_sheet, sample
from consistune.nn import store
from consistune.nn.autoencoder.space import open_space
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

FEWEST_IMAGES, SHOWN, TIMED_STEPS, SAMPLES = 16, 40, 6, 1_000
PARTS = {"train.checkpoint_images": 4, "train.log_images": 100}
"""Keys of the recipes → into how many parts they divide a training."""
AUTOENCODER = "taef2"
LATENT_SIDE, LATENT_SIZE = 48, 64
"""Colour images of this side and more are learned as latents; the pictures' side where none is named."""
PIXEL_SIZE = 32
"""Of images that are learned as pixels, where no size is named."""
COLOUR_IN_PIXELS = 1_000_000
"""Teacher's images for small pictures in colour as pixels (ours; some 100,000 gave blobs of photographs)."""


@dataclass(frozen=True)
class Space:
    """What the job learns, pixels or latents: how it trains there.

    Attributes:
        teacher, tuned: the recipes that the two trainings begin with.
        shares: of the time, for each; the rest is for measuring and the page.
        fewest: training images of each, without which the pictures would be blobs.
        wanted: training images that the tuning gets even where its share is less; half of the time at most.
    """

    teacher: str
    tuned: str
    shares: tuple[float, float]
    fewest: tuple[int, int]
    wanted: int


PIXELS = Space("mnist10k-edm", "mnist10k-sct", (0.5, 0.35), (40_000, 20_000), 60_000)
LATENTS = Space("emoji64-latent-edm", "emoji64-latent-sct", (0.6, 0.25), (20_000, 7_000), 30_000)


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


class Plan(NamedTuple):
    """The two trainings that fit the time: their recipes, training images a second, and minutes in all."""

    teacher: Recipe
    tuned: Recipe
    rates: tuple[float, float]
    minutes: float


def check_sizes(sizes: Mapping[str, int], conditional: bool, where: str) -> None:
    """Raises UserError for too few images, or a class of one; `sizes` has the images of each class."""
    if sum(sizes.values()) < FEWEST_IMAGES:
        what = f"{counted(sum(sizes.values()), 'image')}: too few"
        raise UserError(what, where, f"give {FEWEST_IMAGES}, better 500 or more")
    name = min(sizes, key=sizes.__getitem__)
    if conditional and sizes[name] < 2:
        what = f"the class {name!r} has {counted(sizes[name], 'image')}"
        raise UserError(what, where, "add images, or give --no-labels")


def check_images(data: DataSplit, conditional: bool, where: str | None = None) -> None:
    """Raises UserError for images that cannot be learned from: too few, or of sides that no network takes.

    where: what the message names; None: the prepared set.
    """
    pictures, latents = data.to_look_at.train, data.train.latents
    multiple = 8 if latents is None else 2 * latents.factor
    _, height, width = pictures.image_shape
    sizes = torch.bincount(pictures.labels, minlength=len(pictures.class_names)).tolist()
    where = where or pictures.name
    check_sizes(dict(zip(pictures.class_names, sizes, strict=True)), conditional, where)
    if height != width or height % multiple:
        raise UserError(
            f"images of {height}×{width} do not fit the networks here",
            where,
            f"give --size {max(multiple, min(height, width) // multiple * multiple)}",
        )


def network(shape: tuple[int, int, int]) -> dict[str, Any]:
    """A network for images or latents of this shape.

    An MLP for pictures of 8×8, else a U-Net over patches on a grid of 8×8, or of the latents' own side where
    that is no multiple of 8.
    """
    channels, side, _ = shape
    if side == 8 and channels <= 3:
        return {"kind": "mlp", "width": 256, "blocks": 3, "expansion": 4, "embedding": 128, "dropout": 0.1}
    return {
        "kind": "patch-unet",
        "patch": side // 8 if side % 8 == 0 else 1,
        "model_channels": 64 if channels == 1 else 96,
        "channel_mult": [1, 2],
        "num_blocks": 2,
        "dropout": 0.1,
    }


def choose_autoencoder(
    word: str, seen: Survey, size: int | None, seconds: float, device: torch.device
) -> str | None:
    """The autoencoder through which images go; None: they are learned as pixels.

    "auto" is AUTOENCODER for colour images of LATENT_SIDE and more, and for smaller ones, unless the user
    names their size, where the time allows fewer than COLOUR_IN_PIXELS training images of the teacher.

    Args:
        word: "auto", "none", or an autoencoder's name.
        seen: the images as they are.
        size: the side that the user asks for.
    """
    if word != "auto":
        return None if word == "none" else word
    if seen.channels != 3:
        return None
    if size is not None or seen.side >= LATENT_SIDE:
        return AUTOENCODER if (size or seen.side) >= LATENT_SIDE else None
    pictures = torch.zeros(128, 3, PIXEL_SIZE, PIXEL_SIZE, dtype=torch.uint8)
    blank = DataSplit(ImageSet.of("blank", pictures, torch.zeros(128).long(), ("all",)), None)
    settings = {"network": network(blank.train.image_shape)}
    rate = training_rate(scaled_recipe(PIXELS.teacher, "", False, COLOUR_IN_PIXELS, settings), device, blank)
    return None if rate * seconds * PIXELS.shares[0] >= COLOUR_IN_PIXELS else AUTOENCODER


def split_images(space: Space, seconds: float, rates: tuple[float, float]) -> tuple[int, int]:
    """Training images of the teacher and of the tuning, for so many images a second of each."""
    both = seconds * sum(space.shares)
    tuning = max(seconds * space.shares[1], min(space.wanted / rates[1], both / 2))
    return int((both - tuning) * rates[0]), int(tuning * rates[1])


def training_rate(
    recipe: Recipe, device: torch.device, data: DataSplit, model: Preconditioned | None = None
) -> float:
    """Training images a second of a recipe on these data, from a few steps after the first two."""
    trainer = make_plan(recipe, device, Given(data, model)).trainer(device)
    steps = trainer.steps()
    for _ in range(2):
        next(steps)
    began = time.perf_counter()
    for _ in range(TIMED_STEPS):
        next(steps)
    return TIMED_STEPS * trainer.options.batch / (time.perf_counter() - began)


class Job:
    """One job in a folder. `plan` makes the recipes, `run` does the work."""

    def __init__(
        self,
        out: Path,
        data: DataSplit,
        data_name: str,
        screen: Screen,
        device: torch.device,
        x_flip: bool = False,
        source: str | None = None,
    ) -> None:
        """x_flip: pixels are mirrored at random; latents of mirrored pictures are in the data.

        source: what the user gave, for messages about the images.
        """
        self.source = source
        self.out, self.data, self.data_name, self.x_flip = out, data, data_name, x_flip
        self.screen, self.device = screen, device
        self.space = PIXELS if data.train.latents is None else LATENTS
        self.ends: float | None = None

    @property
    def planned(self) -> bool:
        """An earlier call has written the recipes."""
        return all(self._recipe_file(name).exists() for name in ("teacher", "tuned"))

    def plan(self, seconds: float, conditional: bool, spent: float = 0.0) -> Plan:
        """Time a few steps and scale the recipes to the time, of which `spent` seconds are over.

        Raises UserError, with the time that would do, where it is too short.
        """
        check_images(self.data, conditional, self.source)
        space = self.space
        teacher = self._recipe(space.teacher, conditional, space.fewest[0])
        fresh = make_plan(teacher, self.device, Given(self.data)).model
        tuned = self._recipe(space.tuned, conditional, space.fewest[1])
        rates = (
            training_rate(teacher, self.device, self.data),
            training_rate(tuned.model_copy(update={"start_from": None}), self.device, self.data, fresh),
        )
        longest = max(fewest / rate for fewest, rate in zip(space.fewest, rates, strict=True))
        enough = 2 * longest / sum(space.shares)  # each gets half of the time in the shortest job
        if seconds - spent < enough:
            raise UserError(
                f"{seconds / 60:.3g} minutes are too short for these images on this machine",
                "--time",
                f"give {math.ceil((enough + spent) / 60)}m or more, or a smaller --size",
            )
        counts = split_images(space, seconds - spent, rates)
        teacher = self._recipe(space.teacher, conditional, counts[0])
        return Plan(teacher, self._recipe(space.tuned, conditional, counts[1]), rates, seconds / 60)

    def begin(self, plan: Plan) -> None:
        """Write the recipes, by which the job is planned; from now on its time counts."""
        lengths = [recipe.train.images / rate for recipe, rate in zip(plan[:2], plan.rates, strict=True)]
        self.ends = time.monotonic() + sum(lengths)
        for name, recipe in (("teacher", plan.teacher), ("tuned", plan.tuned)):
            write_atomically(self._recipe_file(name), to_yaml(recipe))

    def run(self) -> Path:
        """Train, tune, measure; returns the page. Raises training.run.Interrupted after a signal."""
        models: dict[str, Preconditioned] = {}
        self._update_paths()
        for name in ("teacher", "tuned"):
            recipe = read_recipe(str(self._recipe_file(name)))
            if name == "tuned" and self.ends is not None:
                recipe = self._fitted(recipe, models["teacher"], self.ends - time.monotonic())
            train_run(self.out / name, recipe, self.screen, draw=self._draw, device=self.device)
            models[name] = store.load(self.out / name / "model", self.device)
        results = self._results(models)
        write_atomically(self.out / "results.json", json.dumps(results, indent=1))
        page = self.out / "report.html"
        drawn = [sample(models[row["model"]], range(SHOWN), row["steps"]) for row in results["rows"]]
        real = self.data.to_look_at.train.images
        pictures = [*drawn, real[torch.linspace(0, len(real) - 1, SHOWN).long()]]
        write_atomically(page, create_page(results, pictures))
        return page

    def _update_paths(self) -> None:
        """Write the present paths into the recipes and those of the runs, where the folder was moved."""
        for name in ("teacher", "tuned"):
            for file in (self._recipe_file(name), self.out / name / "recipe.yaml"):
                if file.is_file():
                    before = file.read_text(encoding="utf-8")
                    recipe = read_recipe(str(file))
                    paths = {"data": self.data_name}
                    if name == "tuned":
                        paths["start_from"] = str(self.out / "teacher" / "model")
                    after = to_yaml(recipe.model_copy(update=paths))
                    if before == to_yaml(recipe) != after:
                        write_atomically(file, after)

    def _fitted(self, recipe: Recipe, teacher: Preconditioned, seconds: float) -> Recipe:
        """The tuning's recipe, made and written anew for the time that the teacher has left.

        It never has fewer images than were planned and `Space.wanted`: a late page is better than blobs.
        """
        rate = training_rate(
            recipe.model_copy(update={"start_from": None}), self.device, self.data, deepcopy(teacher)
        )
        images = max(int(seconds * rate), min(recipe.train.images, self.space.wanted))
        minutes = images / rate / 60
        self.screen.say(f"tuning on {images:,} images, {rate:,.0f} a second: about {minutes:.0f} minutes")
        recipe = self._recipe(self.space.tuned, recipe.conditional, images)
        write_atomically(self._recipe_file("tuned"), to_yaml(recipe))
        return recipe

    def _recipe_file(self, name: str) -> Path:
        return self.out / f"{name}.yaml"

    def _recipe(self, base: str, conditional: bool, images: int) -> Recipe:
        """A recipe of the package for these data; the tuned one starts from the teacher's run."""
        settings: dict[str, Any] = {key: max(images // parts, 64) for key, parts in PARTS.items()}
        if self.x_flip:
            settings["train.x_flip"] = True
        if base == self.space.teacher:
            settings["network"] = network(self.data.train.image_shape)
        else:
            settings["start_from"] = str(self.out / "teacher" / "model")
        return scaled_recipe(base, self.data_name, conditional, images, settings)

    def _draw(self, model: Preconditioned, path: Path) -> None:
        draw_sheet(model, path)
        self.screen.say(f"pictures: {path}")

    def _results(self, models: dict[str, Preconditioned]) -> dict[str, Any]:
        """Distances of the teacher, the untuned teacher in one step, and the tuned model in one and two."""
        pictures = self.data.to_look_at
        samples = min(SAMPLES, max(256, len(pictures.train)))
        judge = Judge(pictures, samples, None, self.screen, self.device)
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
            row = {"name": name, "model": key, "steps": steps}
            row |= {"evaluations": sampler.evaluations, "seconds": seconds}
            if features is not None:
                measured = judge.of_images(images, judge.labels if model.num_classes else None)
                row["distance"], row["novelty"] = measured["frechet_train"], measured["memorisation"]
            rows.append(row)
            self.screen.say(f"{name}, {counted(sampler.evaluations, 'evaluation')} an image: {_shown(row)}")
        latents, floor = self.data.train.latents, None
        if features is not None and latents is not None:
            rows_of = torch.linspace(0, len(self.data.train) - 1, samples).long()
            decoded = open_space(latents, self.device).decode(self.data.train.values(rows_of))
            floor = judge.of_images(decoded, None)["frechet_train"]
        held_out, distance = pictures.held_out, None
        if features is not None and held_out is not None:
            distance = judge.of_images(held_out.images, None)["frechet_train"]
        return {
            "folder": str(self.out),
            "look": Look.at(pictures.train).__dict__,
            "latents": None if latents is None else asdict(latents),
            "latent_shape": self.data.train.image_shape,
            "floor": floor,
            "samples": judge.samples,
            "features": features,
            "rows": rows,
            "held_out": distance,
            "held_out_images": 0 if held_out is None else len(held_out),
        }


def _shown(row: dict[str, Any]) -> str:
    distance = f"distance {row['distance']:.2f} %, " if "distance" in row else ""
    return f"{distance}{1 / row['seconds']:,.0f} images a second"
