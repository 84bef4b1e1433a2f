"""The models in the box, each a folder of src/consistune/box with its card. emoji64, from a ZIP of emoji:

    python benchmarks/box.py data emoji64.zip box.zip   # Noto and Fluent emoji only, by `source`
    consistune data prepare box.zip data/emoji64-latent --latents taef2 --held-out 0.05 --split-by group
    consistune train emoji64-latent-edm --out runs/first
    consistune train emoji64-latent-edm network=null start_from=runs/first optimizer.lr=1e-3 \\
        train.images=256_000 --out runs/teacher
    consistune train emoji64-latent-sct start_from=runs/teacher train.images=105_000 \\
        pairs.gap.every_images=21_000 --out runs/box
    consistune evaluate runs/teacher --data data/emoji64-latent --samples 1000 --out results/edm
    consistune evaluate runs/box --data data/emoji64-latent --samples 1000 --out results/sct
    python benchmarks/box.py pack emoji64 runs/box --before runs/first runs/teacher --results results/*
    python benchmarks/box.py compare runs/box --teacher runs/teacher   # docs/emoji64.png

mnist10k, from a study's run of seed 2, the best of three (RUN, TEACHER and STAGE-1 are folders under --work):

    python benchmarks/digits.py mnist10k_tcm --only estimator=score-identity
    consistune evaluate RUN --data data/mnist10k --features classifier --samples 5000 --steps 1,2 \\
        --out results/mnist10k
    python benchmarks/box.py pack mnist10k RUN --before TEACHER STAGE-1 --results results/mnist10k

`pack` writes the averaged weights as float16, and NAME.md from the runs' recipes and results.json.

    python benchmarks/box.py pictures emoji64.zip   # box/emoji.zip, which `consistune demo --colour` learns
"""

import argparse
import io
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import nn

from consistune.models import BOX, load, sample
from consistune.nn import store
from consistune.pages.pictures import grid_png, in_pairs
from consistune.recipe import read_recipe
from consistune.system.files import write_atomically
from tables import DOCS

SOURCES = {0: "Noto Emoji 2.048 (Google, Apache-2.0)", 3: "Fluent Emoji 3D (Microsoft, MIT)"}
"""By their numbers in dataset.json; vendors whose licence asks for more are left out."""
CLASSES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Flags")
"""Of the demo's pictures: those that are easy to recognise."""
WEBP_QUALITY = 95
SHOWN = (
    "fd-efficientnet-64",
    "fd-classifier",
    "accuracy",
    "kid",
    "precision",
    "recall",
    "novelty",
    "copies",
    "near_copies",
)


class Boxed(NamedTuple):
    """What a model of the box is, for its card."""

    title: str
    made: str
    data: str
    licence: str
    commands: str
    limits: str
    recipe: str
    """Of its data, and of the model that the training started from."""
    start: str


OURS = "of the weights: Apache-2.0, as this package"
HEAD = "those at the head of benchmarks/box.py"
MODELS = {
    "emoji64": Boxed(
        "64×64 emoji in one step",
        "a model of latents of taef2 (MIT), tuned by SCT (2410.18958) on a CPU",
        f"{'; '.join(SOURCES.values())}: 64×64 over white, labels are the nine categories of emoji",
        f"{OURS}; the data's licences allow it and are named above",
        HEAD,
        "a small network and a short training: soft pictures, no letters. Not for identifying anything",
        "emoji64-latent",
        "emoji64-latent-edm",
    ),
    "mnist10k": Boxed(
        "MNIST's digits at 32×32 in one step or two",
        "mnist10k-best on a CPU: ECT (2406.14548), then TCM (2410.14895) with SCT's estimate",
        "8,099 of MNIST's training images (LeCun, Cortes, Burges), 28×28 within 32×32",
        f"{OURS}; MNIST is commonly listed under CC BY-SA 3.0, and no image of it is here",
        f"{HEAD}, seed 2, the best of three",
        "a small network and a short training: a classifier misreads one picture in nine",
        "mnist10k",
        "mnist10k-ect",
    ),
}


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


def pack(name: str, run: Path, before: list[Path], results: list[Path]) -> Path:
    """The run's averaged model in float16, and its card. The trainings before it are in their order."""
    of, dest = MODELS[name], BOX / name
    model = load(run)
    for parameter in (*model.parameters(), *model.buffers()):
        parameter.data = parameter.data.half()
    start = model.card.start_from
    origin = None if start is None else {**start.model_dump(), "path": of.start}
    model.card = model.card.updated(data=of.recipe, start_from=origin)
    store.save(model, dest)
    (dest / store.WEIGHTS).chmod(0o644)
    dest.with_suffix(".md").write_text(card(name, model, [*before, run], results), encoding="utf-8")
    return dest


def card(name: str, model: nn.Module, runs: list[Path], results: list[Path]) -> str:
    of = MODELS[name]
    trained = [read_recipe(str(folder / "recipe.yaml")) for folder in runs]
    trainings = [
        f"{each.train.images:,} images ({each.objective}, seed {each.train.seed})" for each in trained
    ]
    rows = [row for folder in results for row in json.loads((folder / "results.json").read_text())["rows"]]
    first, last = rows[0]["seeds"][0]
    samples = last - first + 1
    unique = {row["name"]: row for row in rows}
    names = [name for name in SHOWN if any(name in row["summary"] for row in rows)]
    lines = [f"| {' | '.join(['samples', *names])} |", f"|{'---|' * (len(names) + 1)}"]
    lines += [f"| {' | '.join([row['name'], *(cell(row, n) for n in names)])} |" for row in unique.values()]
    count = sum(p.numel() for p in model.parameters())
    return f"""# {name}: {of.title}

{count:,} parameters in float16, {of.made}.

    consistune sample {name} --seeds 0-15 --out grid.png

- **Data**: {of.data}.
- **Licence** {of.licence}.
- **Commands**: {of.commands}. Trainings: {", then ".join(trainings)}.
- **Limits**: {of.limits}.

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
    packing.add_argument("name", choices=MODELS)
    packing.add_argument("run", type=Path)
    packing.add_argument("--before", type=Path, nargs="+", required=True)
    packing.add_argument("--results", type=Path, nargs="+", required=True)
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
        print(pack(given.name, given.run, given.before, given.results))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
