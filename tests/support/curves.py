"""Folders of runs with made-up logs: curves of a known shape with scatter of a known size."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

from consistune.nn import store
from consistune.recipe import read_recipe, to_yaml
from consistune.system.files import write_atomically

Shape = Callable[[float], float]
SCATTER = 0.05
"""Standard deviation of the logarithm of each logged value."""
SHAPES: dict[str, Shape] = {
    "loss": lambda share: 1 + math.exp(-5 * share) + 10 * math.exp(-60 * share),
    "loss/t=0.3-1": lambda share: 2 + math.exp(-3 * share),
    "gradient_norm": lambda share: 0.5 + share,
    "evaluate/fd_percent": lambda share: 3 / (0.1 + share),
    "evaluate/accuracy": lambda share: 1 - 0.5 * math.exp(-9 * share),
}
LOGS = 60


def write_run(
    folder: Path,
    seed: int,
    recipe: str = "digits-sct",
    keys: tuple[str, ...] = (),
    change: Callable[[str, float, float], float] = lambda figure, share, value: value,
    data_sha256: str | None = "a" * 64,
    upto: float = 1.0,
) -> Path:
    """A run's folder: recipe, environment, log, and the card of its model with the fingerprint of its images.

    change: (figure, share of training, value) → the value that is logged. upto: the share of training seen.
    """
    images = read_recipe(recipe, keys).train.images
    words = read_recipe(recipe, [f"train.log_images={images // LOGS}", *keys, f"train.seed={seed}"])
    generator, train = random.Random(seed), words.train
    write_atomically(folder / "recipe.yaml", to_yaml(words))
    write_atomically(folder / "environment.json", json.dumps({"processor": "made up"}))
    lines = []
    for number in range(1, round(LOGS * upto) + 1):
        images, share = train.images * number // LOGS, number / LOGS
        scattered = {
            name: change(name, share, shape(share) * math.exp(generator.gauss(0, SCATTER)))
            for name, shape in SHAPES.items()
        }
        record = {"images": images, "step": images // train.batch, "nonfinite_total": 0, **scattered}
        lines.append(json.dumps(record))
    write_atomically(folder / "metrics.jsonl", "\n".join(lines) + "\n")
    if data_sha256 is not None:
        card = {"meta": {"data_sha256": data_sha256}}
        write_atomically(folder / "model" / store.CONFIG, json.dumps(card))
    return folder
