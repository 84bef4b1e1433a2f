"""The model in the box: from a ZIP of emoji to src/consistune/box/emoji64, a model of one step with its card.

    python benchmarks/box.py data emoji64.zip box.zip   # Noto and Fluent emoji only, by `source`
    consistune data prepare box.zip data/emoji64-latent --latents taef2 --held-out 0.05 --split-by group
    consistune train emoji64-latent-edm --out runs/first
    consistune train emoji64-latent-edm network=null start_from=runs/first optimizer.lr=1e-3 \\
        train.images=256_000 --out runs/teacher
    consistune train emoji64-latent-sct start_from=runs/teacher train.images=105_000 \\
        pairs.gap.every_images=21_000 --out runs/box
    consistune evaluate runs/teacher --data data/emoji64-latent --samples 1000 --out results/edm
    consistune evaluate runs/box --data data/emoji64-latent --samples 1000 --out results/sct
    python benchmarks/box.py pack runs/box --teachers runs/first runs/teacher --results results/*
    python benchmarks/box.py compare runs/box --teacher runs/teacher   # docs/emoji64.png

`pack` writes the averaged weights as float16, and emoji64.md from the runs' recipes and results.json.

    python benchmarks/box.py pictures emoji64.zip   # box/emoji.zip, which `consistune demo --colour` learns
"""

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from consistune.models import BOX, load, sample
from consistune.nn import store
from consistune.pages.pictures import grid_png, in_pairs
from consistune.recipe import read_recipe
from consistune.system.files import write_atomically
from tables import DOCS

NAME = "emoji64"
SOURCES = {0: "Noto Emoji 2.048 (Google, Apache-2.0)", 3: "Fluent Emoji 3D (Microsoft, MIT)"}
"""By their numbers in dataset.json; vendors whose licence asks for more are left out."""
CLASSES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Flags")
"""Of the demo's pictures: those that are easy to recognise."""
WEBP_QUALITY = 95
SHOWN = ("fd-efficientnet-64", "kid", "precision", "recall", "novelty", "copies", "near_copies")


def select(source: Path, dest: Path) -> int:
    """Copy the images of SOURCES, and the columns of dataset.json that run parallel to `labels`."""
    with zipfile.ZipFile(source) as images, zipfile.ZipFile(dest, "w") as out:
        table = json.loads(images.read("dataset.json"))
        kept = [row for row, number in enumerate(table["source"]) if number in SOURCES]
        count = len(table["labels"])
        for key, column in table.items():
            if isinstance(column, list) and len(column) == count:
                table[key] = [column[row] for row in kept]
        for name, _ in table["labels"]:
            out.writestr(name, images.read(name))
        out.writestr("dataset.json", json.dumps(table))
    return len(kept)


def pictures(source: Path, dest: Path) -> int:
    """Of SOURCES, the base forms (no skin tones) of CLASSES as WebP, with their classes and groups."""
    with zipfile.ZipFile(source) as images, zipfile.ZipFile(dest, "w", zipfile.ZIP_STORED) as out:
        table = json.loads(images.read("dataset.json"))
        numbers = [table["class_names"].index(name) for name in CLASSES]
        columns = zip(table["labels"], table["source"], table["is_variation"], table["group"], strict=True)
        labels, groups = [], []
        for (name, label), vendor, varied, group in columns:
            if vendor in SOURCES and label in numbers and not varied:
                picture = io.BytesIO()
                Image.open(io.BytesIO(images.read(name))).convert("RGB").save(
                    picture, format="WEBP", quality=WEBP_QUALITY, method=6
                )
                labels.append([Path(name).with_suffix(".webp").as_posix(), numbers.index(label)])
                groups.append(group)
                out.writestr(zipfile.ZipInfo(labels[-1][0]), picture.getvalue())
        known = {"labels": labels, "class_names": CLASSES, "group": groups}
        out.writestr(zipfile.ZipInfo("dataset.json"), json.dumps(known), zipfile.ZIP_DEFLATED)
    return len(labels)


def pack(run: Path, teachers: list[Path], results: list[Path], dest: Path) -> Path:
    """The run's averaged model in float16, and its card. The teacher's trainings are in their order."""
    model = load(run)
    for parameter in (*model.parameters(), *model.buffers()):
        parameter.data = parameter.data.half()
    start = model.card.start_from
    origin = None if start is None else {**start.model_dump(), "path": "emoji64-latent-edm"}
    model.card = model.card.updated(data="emoji64-latent", start_from=origin)
    store.save(model, dest)
    (dest / store.WEIGHTS).chmod(0o644)
    dest.with_suffix(".md").write_text(card(model, [*teachers, run], results), encoding="utf-8")
    return dest


def card(model: nn.Module, runs: list[Path], results: list[Path]) -> str:
    trained = [read_recipe(str(folder / "recipe.yaml")).train for folder in runs]
    *before, tuning = [f"{train.images:,} images, seed {train.seed}" for train in trained]
    rows = [row for folder in results for row in json.loads((folder / "results.json").read_text())["rows"]]
    first, last = rows[0]["seeds"][0]
    samples = last - first + 1
    unique = {row["name"]: row for row in rows}
    names = [name for name in SHOWN if any(name in row["summary"] for row in rows)]
    lines = [f"| {' | '.join(['samples', *names])} |", f"|{'---|' * (len(names) + 1)}"]
    lines += [f"| {' | '.join([row['name'], *(cell(row, n) for n in names)])} |" for row in unique.values()]
    count = sum(p.numel() for p in model.parameters())
    return f"""# {NAME}: 64×64 emoji in one step

{count:,} parameters in float16, a model of latents of taef2 (MIT), tuned by SCT (2410.18958) on a CPU.

    consistune sample {NAME} --seeds 0-15 --out grid.png

- **Data**: {"; ".join(SOURCES.values())}: 64×64 over white, labels are the nine categories of emoji.
- **Licence** of the weights: Apache-2.0, as this package; the data's licences allow it and are named above.
- **Commands**: those at the head of benchmarks/box.py. Teacher: {", then ".join(before)}. Tuning: {tuning}.
- **Limits**: a small network and a short training: soft pictures, no letters. Not for identifying anything.

Measured on {samples:,} samples against the training pictures (novelty, copies: against held-out ones):

{chr(10).join(lines)}
"""


def cell(row: dict[str, Any], name: str) -> str:
    """A measure, with its error bar where it has one."""
    if name not in row["summary"]:
        return "–"
    value, error = (row["summary"].get(key, {}).get("mean") for key in (name, f"{name}_error"))
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def compare(run: Path, teacher: Path, dest: Path) -> Path:
    """The first pictures of both, from the same noise: rows of the teacher's, each over the model's."""
    above, below = (sample(load(each), range(20)) for each in (teacher, run))
    write_atomically(dest, grid_png(in_pairs(above, below, 10), 10))
    return dest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    data = stages.add_parser("data")
    data.add_argument("source", type=Path)
    data.add_argument("dest", type=Path)
    drawn = stages.add_parser("pictures")
    drawn.add_argument("source", type=Path)
    drawn.add_argument("dest", type=Path, nargs="?", default=BOX / "emoji.zip")
    packing = stages.add_parser("pack")
    packing.add_argument("run", type=Path)
    packing.add_argument("--teachers", type=Path, nargs="+", required=True)
    packing.add_argument("--results", type=Path, nargs="+", required=True)
    packing.add_argument("--dest", type=Path, default=BOX / NAME)
    comparing = stages.add_parser("compare")
    comparing.add_argument("run", type=Path)
    comparing.add_argument("--teacher", type=Path, required=True)
    comparing.add_argument("--dest", type=Path, default=DOCS / "emoji64.png")
    given = parser.parse_args()
    if given.stage in ("data", "pictures"):
        make = select if given.stage == "data" else pictures
        print(f"{make(given.source, given.dest):,} images")
    elif given.stage == "compare":
        print(compare(given.run, given.teacher, given.dest))
    else:
        print(pack(given.run, given.teachers, given.results, given.dest))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
