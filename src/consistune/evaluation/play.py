"""The playground without its page: what may be asked of a model, and the pictures, times and commands."""

import shlex
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from consistune.core.rng import Between
from consistune.core.sampling import Sampler
from consistune.errors import UserError
from consistune.evaluation.settings import check_guidance
from consistune.models import DIFFUSION_STEPS, default_sampler, load, picture_shape, sample
from consistune.nn.precond import Preconditioned
from consistune.pages.page import counted
from consistune.pages.pictures import grid, png_bytes

MOST_PICTURES, MOST_STEPS, MOST_SEED = 64, 4, 1 << 53
MOST_DIFFUSION_STEPS = 50
STRONGEST = 4.0
"""Largest weight of the guidance."""
SECOND_T, APART = 0.821, 2.5
"""Noise level of the second step where the card names none (iCT's on CIFAR-10, 2310.14189); each further step
goes before those known, at so many times the noise [choice]."""
REPEATS = 5
SHEET_SIDE = 640
"""Pixels up to which a grid is enlarged, by an integer."""


@dataclass(frozen=True)
class Wish:
    """What is drawn: `count` pictures from `seed` on, or on the way from `seed` to `other`.

    label: a class; None: the classes in turn, and between two seeds the first one's.
    """

    seed: int = 0
    count: int = 16
    label: int | None = None
    steps: int = 1
    guidance: float = 1.0
    other: int | None = None
    teacher: bool = False


@dataclass(frozen=True)
class Drawn:
    """The pictures of a wish, those of the teacher, a file's name, and how to draw them again."""

    own: "Sheet"
    teacher: "Sheet | None"
    name: str
    command: str


@dataclass(frozen=True)
class Sheet:
    """A grid of pictures as PNG, and in words the evaluations and the time that it took."""

    png: bytes
    words: str


@dataclass
class Playground:
    """A model, and the teacher that it is compared with.

    Raises UserError where there are no pictures, or the two do not make pictures of the same seed and class.
    """

    path: str
    model: Preconditioned
    teacher: Preconditioned | None = None
    _alone: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        if (channels := self.picture_shape[0]) not in (1, 3):
            raise UserError(
                f"images of {channels} channels are no pictures", self.path, "use consistune sample"
            )
        if self.teacher is None:
            return
        if not self.teacher.card.is_diffusion:
            what = "is no diffusion model"
            raise UserError(what, "--teacher", f"give the model that {self.path} was tuned from")
        for what, own, other in (
            ("images", list(self.model.image_shape), list(self.teacher.image_shape)),
            ("classes", self.model.num_classes, self.teacher.num_classes),
        ):
            if own != other:
                raise UserError(f"the teacher has other {what}: {other}, the model has {own}", "--teacher")

    @classmethod
    def open(cls, path: str, teacher: str | None, device: torch.device) -> "Playground":
        return cls(path, load(path, device), None if teacher is None else load(teacher, device))

    @property
    def name(self) -> str:
        """A short name: of a run's model, the run's."""
        parts = [part for part in Path(self.path).parts if part not in ("/", "model")]
        return parts[-1] if parts else self.path

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        return picture_shape(self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def classes(self) -> list[str]:
        names = self.model.card.class_names
        return list(names) or [str(label) for label in range(self.model.num_classes)]

    @property
    def steps(self) -> list[int]:
        """The numbers of steps that may be asked for."""
        card = self.model.card
        if card.is_diffusion:
            return list(range(1, MOST_DIFFUSION_STEPS + 1))
        if card.edges:
            return [1, len(card.edges) + 1]
        return [steps for steps in range(1, MOST_STEPS + 1) if self._fits(steps)]

    @property
    def usual_steps(self) -> int:
        return DIFFUSION_STEPS if self.model.card.is_diffusion else 1

    @property
    def guided(self) -> bool:
        """Whether the model has an unlabelled branch to guide by."""
        try:
            check_guidance(self.model, None, STRONGEST, "guidance")
        except UserError:
            return False
        return True

    def middle_t(self, steps: int) -> tuple[float, ...]:
        """The noise levels of the steps after the first, where the number of steps does not imply them."""
        card = self.model.card
        if card.is_diffusion or card.edges:
            return ()
        times = list(card.mid_t or (max(SECOND_T, card.lowest or 0.0),))[: steps - 1]
        while len(times) < steps - 1:
            times.insert(0, round(APART * times[0], 3))
        return tuple(times)

    def _fits(self, steps: int) -> bool:
        """Whether the noise levels of so many steps lie below the first step's."""
        return max(self.middle_t(steps), default=0.0) < self.model.start

    def sampler(self, steps: int) -> Sampler:
        return default_sampler(self.model, steps, self.middle_t(steps) or None)

    def check(self, wish: Wish) -> None:
        """Raises UserError for a wish that cannot be drawn."""
        for name, value, least, most in (
            ("Pictures", wish.count, 1, MOST_PICTURES),
            ("Seed", wish.seed, 0, MOST_SEED),
            ("Other seed", wish.other or 0, 0, MOST_SEED),
            ("Class", wish.label or 0, 0, max(0, self.model.num_classes - 1)),
            ("Guidance", wish.guidance, 1, STRONGEST if self.guided else 1),
        ):
            if not least <= value <= most:
                raise UserError(f"{value} is not between {least} and {most}", name)
        if wish.steps not in self.steps:
            raise UserError(f"{wish.steps} is not one of {self.steps}", "Steps")
        if wish.teacher and self.teacher is None:
            raise UserError("there is no teacher", "Teacher", "start again with --teacher FOLDER")

    def draw(self, wish: Wish) -> Drawn:
        """The pictures of a wish. Raises UserError as `check` and `sample` do."""
        self.check(wish)
        with self._alone:
            own = self._sheet(self.model, self.sampler(wish.steps), wish, wish.guidance)
            teacher = None
            if wish.teacher and self.teacher is not None:
                teacher = self._sheet(self.teacher, default_sampler(self.teacher, None), wish)
        return Drawn(own, teacher, self._file_name(wish), self.command(wish))

    def _sheet(self, model: Preconditioned, sampler: Sampler, wish: Wish, guidance: float = 1.0) -> Sheet:
        began = time.perf_counter()
        seeds = seeds_of(wish)
        images = sample(model, seeds, condition=wish.label, sampler=sampler, guidance=guidance)
        took = time.perf_counter() - began
        evaluations = counted(getattr(sampler, "evaluations", wish.steps), "evaluation")
        sheet = grid(images)
        png = png_bytes(sheet, max(1, SHEET_SIDE // sheet.shape[-1]))
        return Sheet(png, f"{evaluations} a picture; {counted(len(seeds), 'picture')} in {took:.2f} s")

    def latency(self) -> float:
        """Seconds that one picture takes in the fewest steps, the median of `REPEATS` after one more."""
        times = []
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            sample(self.model, [0], sampler=self.sampler(self.usual_steps))
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def command(self, wish: Wish) -> str:
        """The command, or between two seeds the lines of Python, that draw the same pictures."""
        return self._command(wish) if wish.other is None else self._python(wish)

    def _command(self, wish: Wish) -> str:
        middle = self.middle_t(wish.steps)
        words = ["consistune", "sample", shlex.quote(self.path), f"--seeds {wish.seed}-{_last(wish)}"]
        said = wish.steps != self.usual_steps or self.model.card.edges  # phases: `sample` takes all by itself
        words += [f"--steps {wish.steps}"] if said else []
        words += [f"--mid-t {','.join(f'{t:g}' for t in middle)}"] if middle else []
        words += [f"--classes {wish.label}"] if wish.label is not None else []
        words += [f"--guidance {wish.guidance:g}"] if wish.guidance != 1 else []
        return " ".join([*words, "--out", shlex.quote(self._file_name(wish))])

    def _python(self, wish: Wish) -> str:
        middle = self.middle_t(wish.steps)
        given = ["model", "seeds", f"steps={wish.steps}"]
        given += [f"mid_t={middle}"] if middle else []
        given += [f"condition={wish.label}"] if wish.label is not None else []
        given += [f"guidance={wish.guidance:g}"] if wish.guidance != 1 else []
        share = f"i / {max(1, wish.count - 1)}"
        return (
            "import consistune\nfrom consistune.core.rng import Between\n\n"
            f"model = consistune.load({self.path!r})\n"
            f"seeds = [Between({wish.seed}, {wish.other}, {share}) for i in range({wish.count})]\n"
            f"images = consistune.sample({', '.join(given)})"
        )

    def _file_name(self, wish: Wish) -> str:
        end = _last(wish) if wish.other is None else f"to-{wish.other}"
        return f"{self.name}-{wish.seed}-{end}.png"


def _last(wish: Wish) -> int:
    return wish.seed + wish.count - 1


def seeds_of(wish: Wish) -> list[int | Between]:
    """The seeds of a wish's pictures: consecutive, or on the arc between the noise of two."""
    if wish.other is None:
        return list(range(wish.seed, _last(wish) + 1))
    last = max(1, wish.count - 1)
    return [Between(wish.seed, wish.other, i / last) for i in range(wish.count)]
