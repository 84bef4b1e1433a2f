"""Expected curves of a recipe: the figures of sound runs' logs by share of training, one file a recipe.

The files are src/consistune/expected/NAME.json, made by benchmarks/expected.py from the folders of runs that
differ in their seed alone. The share of training is cut into PARTS equal parts. A figure's value in a part is
the median of what the log says of it there. Between the runs, values scatter; a band is what a sound run of
another seed keeps to.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from statistics import mean, median, stdev
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from consistune.errors import UserError, nearest
from consistune.training.folder import MACHINE_KEYS
from consistune.training.metrics_file import EVALUATION
from consistune.training.options import DURATIONS

FOLDER = Path(__file__).parents[1] / "expected"
PARTS = 20
WIDTH = 4.0
"""Half the width of a band in standard deviations between runs; of the logarithm of positive values."""
FLOOR = 0.02
"""The least standard deviation that a band assumes: three runs may lie together by chance."""
MOST_DIFFERENCES = 3
"""A recipe that differs in more keys is another recipe; so is one of another kind of a part."""
INCIDENTAL = (
    *MACHINE_KEYS,
    *("images", "seed", "precision", "log_images", "checkpoint_images", "evaluate_images", "snapshots"),
    *("ema_snapshot_images", "ema_snapshot_precision", "max_nonfinite", "max_rollbacks"),
)
"""Keys of `train` that leave the expected curves as they are; `images` is compared by itself."""
Record = Mapping[str, Any]
Curve = tuple[float | None, ...]


class Expected(BaseModel):
    """The content of a file.

    Attributes:
        name: the recipe's.
        recipe: what decides the curves (`method_of`), and its hash (`digest_of`).
        images: the number of training images of each run.
        data: the name of the set, and data_sha256 its fingerprint.
        runs: seed, version and machine of each run.
        curves: figure → for each run its value in every part, None where the log has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    recipe: dict[str, Any]
    recipe_sha256: str
    images: int
    data: str
    data_sha256: str | None
    runs: tuple[dict[str, Any], ...]
    curves: dict[str, tuple[Curve, ...]]

    def bands(self, figure: str) -> "tuple[Band | None, ...]":
        """The band of a figure in every part."""
        return _bands(self.curves[figure])


@dataclass(frozen=True)
class Band:
    """The values that sound runs keep to in a part: low ≤ value ≤ high around the runs' mean."""

    low: float
    middle: float
    high: float

    def excess(self, value: float) -> float:
        """How far a value lies from the middle, in half widths: beyond ±1 it is outside; NaN counts as ∞."""
        if math.isnan(value):
            return math.inf
        if self.low > 0:
            if value <= 0:
                return -math.inf
            middle, low, high, value = (math.log(x) for x in (self.middle, self.low, self.high, value))
        else:
            middle, low, high = self.middle, self.low, self.high
        return (value - middle) / (high - middle if value > middle else middle - low)


def _bands(runs: Iterable[Curve]) -> tuple[Band | None, ...]:
    """For every part: mean ± WIDTH · max(deviation there, root mean square deviation of all parts, FLOOR)."""
    columns = [[value for value in column if value is not None] for column in zip(*runs, strict=True)]
    logs = all(value > 0 for column in columns for value in column)
    if logs:
        columns = [[math.log(value) for value in column] for column in columns]
    known = [stdev(column) for column in columns if len(column) > 1]
    typical = math.sqrt(mean(s * s for s in known)) if known else math.nan
    made: list[Band | None] = []
    for column in columns:
        if len(column) < 2:
            made.append(None)
            continue
        middle, half = mean(column), WIDTH * max(stdev(column), typical, FLOOR)
        ends = (middle - half, middle, middle + half)
        made.append(Band(*map(math.exp, ends)) if logs else Band(*ends))
    return tuple(made)


def is_figure(name: str) -> bool:
    """Whether a key of a record is compared: losses, the gradient norm, measures of the averaged model."""
    return name in ("loss", "gradient_norm") or name.startswith(("loss/", EVALUATION))


def part_of(images: int, total: int) -> int:
    """The part of training, from 0, that ends with or after this number of images."""
    return min(-(-images * PARTS // total) - 1, PARTS - 1)


def of_complete_parts(records: Iterable[Record], recipe: Mapping[str, Any]) -> list[Record]:
    """The records of those parts of training that the log has gone through to the next line after their end.

    The first lines of a part alone would lie above its median where a figure falls.
    """
    kept, train = list(records), recipe["train"]
    seen = max((record["images"] for record in kept), default=0) + train.get("log_images", 1) - 1
    complete = seen * PARTS // train["images"]
    return [record for record in kept if part_of(record["images"], train["images"]) < complete]


def curves_of(records: Iterable[Record], total: int) -> dict[str, Curve]:
    """Figure → the median of its values in every part; NaN where one of them was not finite."""
    values: dict[str, list[list[float]]] = {}
    for record in records:
        for name, value in record.items():
            if is_figure(name) and record["images"] > 0:
                parts = values.setdefault(name, [[] for _ in range(PARTS)])
                parts[part_of(record["images"], total)].append(value)
    return {name: tuple(_median(part) for part in parts) for name, parts in values.items()}


def _median(values: list[float]) -> float | None:
    if not values:
        return None
    return median(values) if all(map(math.isfinite, values)) else math.nan


def method_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved recipe decides the curves: all but data, paths, and INCIDENTAL keys of `train`."""
    kept = _without_paths({name: value for name, value in recipe.items() if name != "data"})
    kept["train"] = {name: value for name, value in kept["train"].items() if name not in INCIDENTAL}
    return kept | {"start_from": recipe.get("start_from") is not None}


def _without_paths(value: Any) -> Any:
    """Paths of models, at any depth, become the word "model"."""
    if isinstance(value, dict):
        return {
            key: "model" if key in ("model", "below", "weights") and isinstance(inner, str) else inner
            for key, inner in ((key, _without_paths(inner)) for key, inner in value.items())
        }
    return value


def digest_of(method: Mapping[str, Any], images: int) -> str:
    """SHA-256 of a method and its number of training images."""
    return hashlib.sha256(json.dumps([method, images], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Difference:
    """A key in which a run's recipe differs from the one that the curves are of."""

    key: str
    own: Any
    expected: Any

    @property
    def of_kind(self) -> bool:
        """Whether the objective, or a part of it, is of another kind."""
        return self.key == "objective" or isinstance(self.own, dict) or isinstance(self.expected, dict)

    def __str__(self) -> str:
        return f"{self.key} is {_short(self.own)} instead of {_short(self.expected)}"


def _short(value: Any) -> str:
    text = str(value.get("kind", value) if isinstance(value, dict) else value)
    return text if len(text) <= 40 else text[:39] + "…"


def differences(own: Any, expected: Any, key: str = "") -> Iterator[Difference]:
    """The keys in which two methods differ; a section of another kind is one difference.

    A key that the own recipe lacks is a later version's: the run was made with its default.
    """
    if isinstance(own, dict) and isinstance(expected, dict) and own.get("kind") == expected.get("kind"):
        for name in own:
            yield from differences(own[name], expected.get(name), f"{key}.{name}".lstrip("."))
    elif own != expected:
        yield Difference(key, own, expected)


def duration_keys(section: Mapping[str, Any], key: str = "") -> dict[str, float]:
    """Dotted key → value of every duration in training images that a recipe's sections hold."""
    found: dict[str, float] = {}
    for name, value in section.items():
        if isinstance(value, dict):
            found |= duration_keys(value, f"{key}{name}.")
        elif name in DURATIONS and value:
            found[key + name] = value
    return found


@cache
def shipped() -> tuple[Expected, ...]:
    """The expected curves that come with the package."""
    return tuple(read_expected(path) for path in sorted(FOLDER.glob("*.json")))


def read_expected(path: Path) -> Expected:
    """A file of expected curves. Raises UserError for anything else."""
    try:
        return Expected.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", str(path)) from error
    except ValidationError as error:
        raise UserError(
            f"is no file of expected curves: {error.errors()[0]['msg']}",
            str(path),
            "benchmarks/expected.py makes one",
        ) from error


def expected_named(word: str) -> Expected:
    """The curves of a recipe's name, or of a file. Raises UserError where there are none."""
    if Path(word).is_file():
        return read_expected(Path(word))
    names = [known.name for known in shipped()]
    for known in shipped():
        if known.name == word:
            return known
    raise UserError(
        f"there are no expected curves of {word!r}",
        "--against",
        f"{nearest(word, names)}there are: {', '.join(names)}",
    )


def scaled_by(recipe: Mapping[str, Any], expected: Expected) -> tuple[float, str]:
    """A run's training images over those of the curves; and why shares cannot be compared, "" where they can.

    With another number of images, a share of training is comparable only where every duration of the recipe
    has the same ratio. Curves of a recipe without durations follow the images seen, not the share.
    """
    ratio = recipe["train"]["images"] / expected.images
    if ratio == 1:
        return ratio, ""
    own, known = duration_keys(recipe), duration_keys(expected.recipe)
    if not known:
        return ratio, "its loss follows the images seen, not the share of training"
    for key, value in known.items():
        if key in own and not math.isclose(own[key] / value, ratio, rel_tol=0.01):
            wanted = round(value * ratio)
            return (
                ratio,
                f"{key} is {own[key]:,}, and its share of training is another (alike would be {wanted:,})",
            )
    return ratio, ""


@dataclass(frozen=True)
class Comparison:
    """The curves that a run is compared with, and in what its recipe differs from theirs.

    expected None: there are none, for `reason`.
    """

    expected: Expected | None
    differences: tuple[Difference, ...] = ()
    reason: str = ""


def comparison(recipe: Mapping[str, Any], data_sha256: str | None, against: str | None = None) -> Comparison:
    """The expected curves for a run: those of its recipe, of the nearest one, or those that `against` names.

    data_sha256: the fingerprint of the run's images, None where it is not known. Raises UserError where
    `against` names none.
    """
    choices = shipped() if against is None else (expected_named(against),)
    found = sorted(
        (
            _compared(recipe, data_sha256, known)
            for known in choices
            if against or _same_set(recipe, data_sha256, known)
        ),
        key=lambda one: len(one.differences),
    )
    if not found:
        return Comparison(None, reason="no expected curves are of this data set")
    best = found[0]
    assert best.expected is not None
    of_kind = any(difference.of_kind for difference in best.differences)
    if against is None and (of_kind or len(best.differences) > MOST_DIFFERENCES):
        keys = ", ".join(difference.key for difference in best.differences[:MOST_DIFFERENCES])
        if len(best.differences) > MOST_DIFFERENCES:
            keys += f" and {len(best.differences) - MOST_DIFFERENCES} more keys"
        return Comparison(
            None, reason=f"no expected curves are of this recipe: {best.expected.name} differs in {keys}"
        )
    if (why := scaled_by(recipe, best.expected)[1]) != "":
        own, known = recipe["train"]["images"], best.expected
        counts = f"the run has {own:,} images, the curves of {known.name} {known.images:,}"
        return Comparison(None, best.differences, f"{counts}: {why}")
    return best


def _same_set(recipe: Mapping[str, Any], data_sha256: str | None, expected: Expected) -> bool:
    """Whether the images are those of the curves: by fingerprint, or by the name of their folder."""
    return data_sha256 == expected.data_sha256 or PurePath(recipe["data"]).name == expected.data


def _compared(recipe: Mapping[str, Any], data_sha256: str | None, expected: Expected) -> Comparison:
    found = list(differences(method_of(recipe), expected.recipe))
    if None not in (data_sha256, expected.data_sha256) and data_sha256 != expected.data_sha256:
        own, known = (
            f"{recipe['data']} with SHA-256 {str(data_sha256)[:8]}…",
            f"{str(expected.data_sha256)[:8]}…",
        )
        found.insert(0, Difference("data", own, known))
    if scaled_by(recipe, expected)[1] == "":
        scaled = duration_keys(expected.recipe)
        found = [
            difference
            for difference in found
            if difference.key not in scaled or recipe["train"]["images"] == expected.images
        ]
    return Comparison(expected, tuple(found))
