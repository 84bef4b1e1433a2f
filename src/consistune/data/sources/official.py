"""Labels of validation images as Tiny-ImageNet, Kaggle's ImageNet and ImageNet's devkit hand them out."""

import csv
import io
from collections.abc import Callable, Collection
from pathlib import Path

from consistune.errors import UserError

ANNOTATIONS = "val_annotations.txt"
"""Tiny-ImageNet's: a line is file, synset, box, separated by tabs; it lies in the folder of the images."""
SOLUTION, SOLUTION_HEADING = "LOC_val_solution.csv", ["ImageId", "PredictionString"]
"""Kaggle's: the second entry is synset and box, once for each object; all objects are of one synset."""
GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
"""The devkit's: line k is the ILSVRC2012_ID of image k; meta.mat has the synset of each ID."""
IMAGE = "ILSVRC2012_val_{:08d}"


def is_kaggle(path: Path) -> bool:
    """Whether a file of labels is Kaggle's for ImageNet."""
    try:
        with path.open("rb") as file:
            return file.readline(64).strip().decode("ascii", "replace").split(",") == SOLUTION_HEADING
    except OSError:
        return False


def validation_labels(
    prefix: str, images: Collection[str], others: Collection[str], read: Callable[[str], bytes]
) -> tuple[dict[str, str], list[str]]:
    """Image (its name without folder and suffix) → synset, and the files that say it; empty where none does.

    Args:
        prefix: the folder of the images.
        images: their names.
        others: all other files: Tiny-ImageNet's is looked for in `prefix` and above, the others anywhere.
        read: a file's content.
    """
    stems = {name.rpartition("/")[2].rpartition(".")[0] for name in images}
    found: dict[str, list[str]] = {}
    for name in others:
        found.setdefault(name.rpartition("/")[2], []).append(name)
    candidates: list[tuple[Callable[..., dict[str, str]], list[str]]] = [
        (
            _annotations,
            [name for name in found.get(ANNOTATIONS, []) if prefix.startswith(name[: -len(ANNOTATIONS)])],
        ),
        (_solution, found.get(SOLUTION, [])[:1]),
        (_ground_truth, [names[0] for names in (found.get(GROUND_TRUTH), found.get(META)) if names]),
    ]
    for parse, tables in candidates:
        if not tables or (parse is _ground_truth and len(tables) < 2):
            continue
        try:
            words = parse(*(read(name) for name in tables))
        except (ValueError, KeyError, IndexError, TypeError, csv.Error) as error:
            raise UserError(f"cannot be read ({str(error)[:80]!a})", tables[0]) from error
        if not stems.isdisjoint(words):
            return words, tables
    return {}, []


def _annotations(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(content.decode().splitlines(), 1):
        name, tab, rest = line.partition("\t")
        synset = rest.partition("\t")[0]
        if line and not tab:
            raise ValueError(f"line {number} has no tab between file and synset")
        if line and found.setdefault(name.rpartition(".")[0], synset) != synset:
            raise ValueError(f"line {number} gives {name} another synset")
    return found


def _solution(content: bytes) -> dict[str, str]:
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    return {row[0]: row[1].split()[0] for row in rows[1:] if row}


def _ground_truth(content: bytes, meta: bytes) -> dict[str, str]:
    from scipy.io import loadmat  # type: ignore[import-untyped]  # a dependency of scikit-learn

    synsets = {
        int(row["ILSVRC2012_ID"]): str(row["WNID"])
        for row in loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    }
    return {IMAGE.format(k): synsets[int(line)] for k, line in enumerate(content.split(), 1)}
