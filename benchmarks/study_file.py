"""A study's file in benchmarks/studies: what is trained, varied, measured. benchmarks/digits.py makes it."""

from pydantic import TypeAdapter

from consistune.reproduce.spec import ScaleSettings, Strict, checked
from records import Refused
from tables import HERE


class Line(Strict):
    """Runs: every combination of the words of `of` (factor → word, or words), and for every seed.

    At the end they are measured in each number of `steps` too, and with guidance by each ω of `omegas`. The
    worse model is the run's own at each share of `snapshots`, and the one at a share of `of_start` of the
    run that it starts from.
    """

    of: dict[str, str | tuple[str, ...]]
    steps: tuple[int, ...] = ()
    omegas: tuple[float, ...] = ()
    snapshots: tuple[str, ...] = ()
    of_start: tuple[str, ...] = ()


class StepRatios(Strict):
    """CPU time of a training step of each word of a factor over the `base` word's, in turns, round by round.

    With `recipe` and `set`, the steps are those of that recipe instead of the study's. With `memory`, the
    peak memory of a process that makes such steps is measured too.
    """

    factor: str
    base: str
    rounds: int
    steps: int
    recipe: str | None = None
    set: tuple[str, ...] = ()
    memory: bool = False


class StudyFile(Strict):
    """A study. Factors name what is varied: factor → word → overrides of the recipe.

    Attributes:
        recipe: a recipe's name; "{FACTOR}" in it is that factor's word.
        set: overrides of every run, before the factors' own.
        all_averages: measure every average of `train.ema`.
        equal_cost: train as many images as cost as much as so many of the base word of `step_ratios`.
        start: the model that the runs start from, and the steps in which it is measured too.
        page: a page of docs/ with a place of the study's name for the table of what equal cost buys, or,
            without `equal_cost`, of what a step costs.
        picture: a file under docs/, and its panels: title → (word of the first factor, steps).
    """

    title: str
    about: str
    data: str
    recipe: str
    scale: ScaleSettings
    set: tuple[str, ...] = ()
    factors: dict[str, dict[str, tuple[str, ...]]]
    runs: tuple[Line, ...]
    all_averages: bool = False
    step_ratios: StepRatios | None = None
    equal_cost: int | None = None
    start: tuple[str, int] | None = None
    page: str | None = None
    picture: tuple[str, dict[str, tuple[str, int]]] | None = None


def read_study(name: str) -> StudyFile:
    """The study of that name. Raises Refused for a run with a word that its factor does not have."""
    study: StudyFile = checked(TypeAdapter(StudyFile), HERE / "studies" / f"{name}.yaml")
    for line in study.runs:
        for factor, words in line.of.items():
            for word in [words] if isinstance(words, str) else words:
                check_word(study, factor, word)
    return study


def check_word(study: StudyFile, factor: str, word: str) -> None:
    """Raises Refused for a factor that the study lacks, or a word that the factor lacks."""
    known = study.factors.get(factor, study.factors)
    if known is study.factors or word not in known:
        raise Refused(f"{factor}={word} is not among {', '.join(known)}")
