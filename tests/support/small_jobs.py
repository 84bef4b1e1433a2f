"""`consistune create` and `consistune reproduce` in seconds."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from consistune import create
from consistune.reproduce import spec


def small_create(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network, 32 samples, and an assumed rate of 40 images a second."""
    for name in ("PIXELS", "LATENTS"):
        small = replace(getattr(create, name), fewest=(16, 16), wanted=32)
        monkeypatch.setattr(create, name, small)
    monkeypatch.setattr(create, "training_rate", lambda *_: 40.0)
    monkeypatch.setattr(create, "SAMPLES", 32)
    network = {"kind": "mlp", "width": 32, "blocks": 1, "expansion": 2, "embedding": 16}
    monkeypatch.setattr(create, "network", lambda _: network)


def small_scales(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale smoke with one seed, 64 samples, ten steps of the teacher and five of each model."""
    known = yaml.safe_load(spec.SCALES.read_text(encoding="utf-8"))
    for data in known.values():
        smoke = data["scales"].get("smoke")
        if smoke:
            smoke.update(seeds=1, samples=64, points=1, teacher=["train.images=1280"])
            smoke["student"] = ["train.images=640", "pairs.gap.every_images=128"]
    path.write_text(yaml.safe_dump(known), encoding="utf-8")
    monkeypatch.setattr(spec.read_data_sets, "__defaults__", (path,))
