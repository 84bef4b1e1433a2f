"""Flipped bits in each kind of file that the program stores: found, or without effect on what is loaded."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from consistune.data.images import ImageSet
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepared import IMAGES, LABELS, damaged, read_meta
from consistune.errors import UserError
from consistune.interop.checkpoints import load_checkpoint
from consistune.interop.export import export_model
from consistune.metrics import classifier
from consistune.metrics.choose import classifier_of
from consistune.metrics.statistics import FEATURES, RADII, STATISTICS, build_reference
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.training import checkpoint, posthoc
from consistune.training.ema import PowerFunction
from consistune.training.metrics_file import MetricsFile
from tests.support.makers import edm_zip, pixels
from tests.support.metrics import EXTRACTOR

EACH = 25
"""Flips a kind in the test suite."""


def made() -> Preconditioned:
    torch.manual_seed(0)
    sizes = {"image_shape": [1, 8, 8], "model_channels": 16, "channel_mult": [1], "num_blocks": 1}
    network = {"kind": "song", **sizes, "attn_resolutions": []}
    return store.build({"network": network, "precond": {"kind": "edm"}}).eval()


def same(a: Preconditioned, b: Preconditioned) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def kinds(folder: Path) -> dict[str, tuple[Path, Callable[[], str]]]:
    """A file of each kind, and what reading it gives: a word."""
    model = made()
    store.save(model, folder / "model")
    export_model(folder / "model", folder / "export.safetensors")
    torch.save(model.state_dict(), folder / "weights.pt")
    state = {"step": 3, "weights": torch.randn(1000)}
    stored = checkpoint.save(folder / "checkpoints", state)
    MetricsFile(folder).append({"images": 64, "step": 1, "loss": 0.5})
    posthoc.save_snapshot(folder, PowerFunction(0.1), model, 64, "fp32")
    (average,) = posthoc.snapshots(folder).values()
    prepared = folder / "set"
    prepare(
        edm_zip(folder / "a.zip", pixels(40, 8, 8), [k % 4 for k in range(40)]), prepared, PrepareOptions()
    )

    def load_model() -> str:
        return "same" if same(store.load(folder / "model"), model) else "changed"

    def load_stored() -> str:
        found, damaged = checkpoint.load_newest(folder / "checkpoints")
        if found is None:
            return "refused" if damaged == [stored] else "lost"
        return "same" if torch.equal(found["weights"], state["weights"]) else "changed"

    def load_average() -> str:
        return "same" if same(posthoc.reconstruct(folder, 0.1), model) else "changed"

    def verified() -> str:
        return "refused" if damaged(prepared, read_meta(prepared)) else "same"

    def foreign(name: str) -> Callable[[], str]:
        return lambda: "same" if same(load_checkpoint(folder / name), model) else "changed"

    def read(reader: Callable[[], Any]) -> Callable[[], str]:
        def act() -> str:
            reader()
            return "loaded"

        return act

    return {
        "model.safetensors": (folder / "model" / store.WEIGHTS, load_model),
        "config.json": (folder / "model" / store.CONFIG, load_model),
        "checkpoint": (stored, load_stored),
        "average": (average, load_average),
        "prepared images": (prepared / "train" / IMAGES, verified),
        "prepared labels": (prepared / "train" / LABELS, verified),
        "export": (folder / "export.safetensors", foreign("export.safetensors")),
        "torch archive": (folder / "weights.pt", foreign("weights.pt")),
        "metrics.jsonl": (folder / "metrics.jsonl", read(MetricsFile(folder).records)),
    }


def cached(folder: Path) -> dict[str, tuple[Path, Callable[[], str]]]:
    """The same of each kind of file in the cache: a damaged one must be made anew, with a warning."""
    images = pixels(40, 8, 8)
    split = ImageSet.of("some", torch.from_numpy(images)[:, None], torch.arange(40) % 2, ("a", "b"))

    def reference() -> list[torch.Tensor]:
        found = build_reference("some", split.images, EXTRACTOR, cache=folder)
        assert found.features is not None
        return [found.mean, found.covariance, found.features[:], found.feature_radii(torch.device("cpu"))]

    def trained() -> list[torch.Tensor]:
        with patch.object(classifier, "EPOCHS", 1):
            return list(classifier_of(split, cache=folder).state_dict().values())

    def reader(made: Callable[[], list[torch.Tensor]]) -> Callable[[], str]:
        first = made()

        def act() -> str:
            with redirect_stderr(StringIO()) as said:
                again = made()
            if not all(map(torch.equal, first, again)):
                return "changed"
            return "made anew" if "is damaged and is made anew" in said.getvalue() else "same"

        return act

    references, classifiers = reader(reference), reader(trained)
    (entry,) = (folder / "reference").iterdir()
    (weights,) = (folder / "classifier").glob("*.safetensors")
    files = {f"cached {name}": (entry / name, references) for name in (STATISTICS, FEATURES, RADII)}
    return {**files, "cached classifier": (weights, classifiers)}


def attack(folder: Path, each: int, seconds: float, seed: int) -> dict[str, dict[str, int]]:
    dice, began = random.Random(seed), time.perf_counter()
    files = kinds(folder) | cached(folder / "cache")
    outcomes = {name: Counter[str]() for name in files}
    while min(map(Counter.total, outcomes.values())) < each or time.perf_counter() - began < seconds:
        for name, (path, read) in files.items():
            whole = path.read_bytes()
            data = bytearray(whole)
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            path.write_bytes(data)
            try:
                outcomes[name][read()] += 1
            except UserError as error:
                outcomes[name]["refused" if str(error).isprintable() else "refused, not printable"] += 1
            except Exception as error:  # what a user must never see
                outcomes[name][f"{type(error).__name__}: {str(error)[:80]}"] += 1
            path.write_bytes(whole)
    return {name: dict(counts) for name, counts in outcomes.items()}


@pytest.mark.attack
def test_no_flipped_bit_is_loaded_in_silence(
    tmp_path: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    outcomes = attack(tmp_path, EACH, 60 * minutes, seed)
    keep_record("flipped_bits", {"outcomes": outcomes})
    print(json.dumps(outcomes, indent=1))
    for name, counts in outcomes.items():
        assert set(counts) <= (
            {"made anew"} if name.startswith("cached") else {"same", "refused", "loaded"}
        ), name
    for name in ("model.safetensors", "checkpoint", "average", "prepared images", "prepared labels"):
        assert set(outcomes[name]) == {"refused"}
