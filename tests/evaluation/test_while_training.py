"""Evaluation while training: logged, and the best model kept."""

import json
from pathlib import Path

from consistune.cli.train import train
from consistune.nn import store


def test_training_logs_its_evaluations_and_keeps_the_best(tmp_path: Path) -> None:
    keys = ["train.images=1536", "train.evaluate_images=512", "train.log_images=512", "train.batch=128"]
    train("digits-edm", keys, tmp_path / "run", resume=False, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["evaluate/fd-classifier_percent"] for line in lines if "evaluate/novelty" in line]
    assert len(found) == 3
    assert min(found) > 0
    best, final = store.load(tmp_path / "run" / "best"), store.load(tmp_path / "run")
    assert best.image_shape == final.image_shape
    same = all((a == b).all() for a, b in zip(best.parameters(), final.parameters(), strict=True))
    assert same == (found[-1] == min(found))
