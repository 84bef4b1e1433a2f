"""The three mnist10k runs of a folder → docs/mnist10k.png, results/mnist10k.json, a table in docs/recipes.md.

    consistune data prepare mnist10k.zip data/mnist10k --held-out 0.1
    consistune train mnist10k-edm train.images=150_000
    consistune train mnist10k-sct train.images=120_000 pairs.gap.every_images=20_000
    consistune train mnist10k-ect train.images=120_000 pairs.gap.every_images=20_000
    python benchmarks/mnist10k.py

The seconds of training are those of the log: images over images a second, summed over its lines.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from consistune.data.images import load_data
from consistune.metrics.scores import score_suite, scores
from consistune.models import load, sample
from consistune.pages.plots import SampleGrids
from consistune.recipe import read_recipe
from consistune.system.files import write_atomically
from pages import DOCS, fill

RESULT = Path(__file__).parent / "results" / "mnist10k.json"
RUNS = {"edm": ("EDM, 35 evaluations", 18), "ect": ("ECT, one step", 1), "sct": ("SCT, one step", 1)}
SHOWN, SAMPLES = 60, 2_000


def training(folder: Path) -> dict[str, float]:
    """Images seen and the seconds that they took, from the log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "images_per_second" in line]
    before = [0, *(line["images"] for line in steps)]
    seconds = sum(
        (line["images"] - start) / line["images_per_second"]
        for line, start in zip(steps, before, strict=False)
    )
    return {"images": steps[-1]["images"], "seconds": round(seconds), "last_loss": steps[-1]["loss"]}


def table(found: dict[str, Any]) -> str:
    lines = [
        "| run | images | training, one core | evaluations | Fréchet distance | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found["runs"].items():
        for steps, measures in row["measures"].items():
            calls = 35 if name == "edm" else int(steps)
            lines.append(
                f"| `mnist10k-{name}` | {row['images']:,} | {row['seconds'] / 60:.1f} min | {calls} "
                f"| {measures['frechet']:.2f} | {measures['accuracy']:.1%} |"
            )
    real = found["held_out"]
    lines += [
        "",
        f"One run each, seed 0. Distances in % of the training images' variance of features, a classifier's "
        f"of the same digits, {found['samples']:,} samples; {real['images']} held-out real digits: "
        f"{real['frechet']:.2f}. The classifier has {real['accuracy']:.1%} of those right.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    folder = parser.parse_args().runs
    recipe = read_recipe(str(folder / "mnist10k-edm" / "recipe.yaml"))
    data = load_data(recipe.data)
    suite = score_suite(data)
    held_out = data.held_out
    assert held_out is not None
    real = scores(suite, held_out.images, held_out.labels)
    found: dict[str, Any] = {
        "what": "mnist10k in short, seed 0, one thread",
        "torch": torch.__version__,
        "samples": SAMPLES,
        "held_out": {
            "images": len(held_out),
            "frechet": round(real.frechet_train, 3),
            "accuracy": real.accuracy,
        },
        "runs": {},
    }
    shown = {}
    for name, (title, first) in RUNS.items():
        model = load(folder / f"mnist10k-{name}")
        row: dict[str, Any] = {**training(folder / f"mnist10k-{name}"), "measures": {}}
        for steps in (first,) if name == "edm" else (first, 2):
            images = sample(model, range(SAMPLES), steps=steps)
            measures = scores(suite, images, torch.arange(SAMPLES) % 10)
            row["measures"][steps] = {
                "frechet": round(measures.frechet_train, 3),
                "accuracy": measures.accuracy,
            }
            shown.setdefault(title, images[:SHOWN])
        found["runs"][name] = row
        print(name, row, flush=True)
    RESULT.write_text(json.dumps(found, indent=2) + "\n")
    write_atomically(DOCS / "mnist10k.png", SampleGrids(shown, columns=10).png())
    fill("recipes.md", "mnist10k", table(found))


if __name__ == "__main__":
    main()
