"""What the package computes, as SHA-256 sums: a change that should change no number is held against them.

    python benchmarks/golden.py                 a minute on one core, writes benchmarks/results/golden.json
    python benchmarks/golden.py --out FILE.json --compare benchmarks/results/golden.json

With --compare the status is 1, and the names that differ are listed, where a sum is not the record's.
Trainings (straight through, and stopped and continued), estimators, objectives, times, schedules, samplers,
fresh and imported networks, prepared data, and an evaluation with every metric. Sums are of bits: they hold
on one kind of processor with one version of torch, which stand beside them. The fixtures of imported
networks lie where $CONSISTUNE_PARITY says, or in ../shared/parity beside the repository.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support import makers
from tests.support.inception import write_inception

import consistune as package
from consistune.data.images import digits
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.split import Split
from consistune.data.prepare.survey import ImageOptions
from consistune.data.sources.base import SourceOptions
from consistune.evaluation.job import Job
from consistune.evaluation.request import Request as Evaluation
from consistune.metrics.sheet import INCEPTION
from consistune.nn import store
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.system.files import write_atomically
from consistune.system.host import machine
from consistune.system.progress import Screen
from consistune.training.run import RunFolder
from golden_core import Found, answered, clocks, estimates, objectives, samplers, small, stirred

CACHE_VARIABLE = "CONSISTUNE_CACHE"
ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "golden.json"
PARITY = Path(os.environ.get("CONSISTUNE_PARITY") or ROOT.parent / "shared" / "parity")


def sum_of(tree: Any) -> str:
    """SHA-256 of tensors (dtype, shape, bytes), numbers, words and bytes, in dicts and lists of any depth."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value):
                total.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            total.update(f"[{len(value)}".encode())
            for item in value:
                add(item)
        else:
            total.update(value if isinstance(value, bytes) else repr(value).encode())

    add(tree)
    return total.hexdigest()


# --- a. training

BATCH, STEPS = 32, 40
TOTAL = BATCH * STEPS
UNREPEATABLE = ("images_per_second", "peak_memory_gib")
KEYS = [
    f"train.images={TOTAL}", f"train.batch={BATCH}", f"train.checkpoint_images={TOTAL // 2}",
    f"train.log_images={5 * BATCH}", "train.snapshots=[0.5]", "train.trackers=[]",
]  # fmt: skip
GAP, SIZE = f"gap.every_images={TOTAL // 4}", f"pairs.size.total_images={TOTAL}"
RECIPES: dict[str, list[str]] = {
    "edm": [],
    "cd": [],
    "cm": [SIZE, f"target.total_images={TOTAL}"],
    "ect": [f"pairs.{GAP}"],
    "ict": [SIZE],
    "sct": [f"pairs.{GAP}"],
    "sct-phased": [f"pairs.pairs.{GAP}"],
    "sct, flipped, labels hidden, in small parts": [
        f"pairs.{GAP}", "train.x_flip=true", "train.label_dropout=0.2", "train.microbatch=8",
        "train.clip_norm=1.0", "train.ema=[0.9, {kind: power, std: 0.1}]",
    ],
    "sct, 20 random references": ["estimator={kind: score-identity, reference: class, size: 20}"],
    "sct, rectified flow": ["schedule={kind: rectified-flow}", f"pairs.{GAP}"],
}  # fmt: skip


def run(name: str, keys: list[str], folder: Path, stop: int | None = None, resume: bool = False) -> Any:
    """Begin or continue a run, broken off after `stop` steps; its weights, averages and log."""
    recipe = read_recipe(f"digits-{name}", keys)
    began = RunFolder(folder, to_yaml(recipe), resume=resume)
    trainer = make_plan(recipe).trainer()
    if resume:
        began.resume(trainer)
        assert trainer.step == STEPS // 2, trainer.step
    steps: Any = began.steps(trainer)
    for report in steps:
        if report.images == (stop or STEPS + 1) * BATCH:
            steps.close()
            return None
    lines = began.metrics.records()
    log = [{key: value for key, value in line.items() if key not in UNREPEATABLE} for line in lines]
    state = trainer.state_dict()
    weights = {key: state[key] for key in ("model", "averages", "optimizer")}
    return {"weights": weights, "log": log, "stored": package.load(folder).state_dict()}


def trainings(work: Path) -> Found:
    teacher = work / "edm straight" / "model"
    for title, own in RECIPES.items():
        name = title.partition(",")[0]
        keys = [*KEYS, *own, *([] if name == "edm" else [f"start_from={teacher}"])]
        keys += [f"estimator.model={teacher}"] if name == "cd" else []
        straight = run(name, keys, work / f"{title} straight")
        run(name, keys, work / f"{title} continued", stop=STEPS // 2)
        continued = run(name, keys, work / f"{title} continued", resume=True)
        for part in straight:
            yield f"{title}: {part}, straight through", straight[part]
            yield f"{title}: {part}, stopped and continued", continued[part]
        if sum_of(straight) != sum_of(continued):
            print(f"{title}: stopped and continued is not straight through", file=sys.stderr)


# --- d. networks


def networks() -> Found:
    for path in sorted((PARITY / "networks").glob("*.pkl")):
        yield f"imported {path.stem}", answered(package.load(path))
    if not (PARITY / "networks").is_dir():
        print(f"no fixtures of networks in {PARITY}: they are left out", file=sys.stderr)
    shape = {"image_shape": [3, 16, 16], "num_classes": 4, "model_channels": 16}
    for kind in ("mlp", "patch-unet", "song", "adm", "edm2"):
        for form in ("edm2",) if kind == "edm2" else ("edm", "vp", "ve", "iddpm", "cm", "ect"):
            torch.manual_seed(0)
            options = {key: shape[key] for key in list(shape)[: 2 if kind == "mlp" else 3]}
            if kind not in ("mlp", "patch-unet"):
                options |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
            model = store.build({"network": {"kind": kind, **options}, "precond": {"kind": form}})
            fresh = {name: value.clone() for name, value in model.state_dict().items()}
            yield f"fresh {kind}, {form}", [fresh, answered(stirred(model))]


# --- e. prepared data


def sources(work: Path) -> Iterator[tuple[str, Path, PrepareOptions]]:
    colour, planar, labels = makers.pixels(12, 8, 8, 3), makers.pixels(12, 3, 8, 8), [2, 0, 1, 1, 0, 2] * 2
    words, plain = ["cab"[k] for k in labels], PrepareOptions()
    makers.class_folders(work / "tree" / "train", colour[:8], words[:8])
    makers.class_folders(work / "tree" / "val", colour[8:], words[8:])
    yield "folder with a test set", work / "tree", plain
    yield "folder", makers.class_folders(work / "folders", colour, words), PrepareOptions(split=Split(0.25))
    makers.class_folders(work, makers.pixels(12, 10, 7), ["flat"] * 12)
    (work / "labels.csv").write_text("".join(f"{k:04d}.png,{label}\n" for k, label in enumerate(labels)))
    csv = SourceOptions(labels=str(work / "labels.csv"))
    yield "folder with csv, cropped", work / "flat", PrepareOptions(csv, ImageOptions(size=6, crop="center"))
    zipped = makers.edm_zip(work / "edm.zip", colour, labels)
    yield "zip", zipped, plain
    for size, mode, by in ((5, "grey", "lanczos"), (16, "rgb", "bicubic")):
        options = PrepareOptions(images=ImageOptions(size, "center", by, mode=mode))
        yield f"zip, {size}, {mode}, {by}", zipped, options
    np.savez(work / "set.npz", images=planar, labels=np.array(labels))
    yield "npz", work / "set.npz", plain
    np.save(work / "set.npy", colour)
    yield "npy", work / "set.npy", PrepareOptions(SourceOptions(layout="nhwc"))
    files = makers.cifar_files(makers.pixels(23, 3, 32, 32), [(7 * k) % 10 for k in range(23)], 3, 5)
    yield "cifar", makers.tar(work / "cifar.tar.gz", files), plain
    for npz in (True, False):
        made = makers.imagenet_batches(
            work / f"imagenet{npz}", makers.pixels(11, 3, 8, 8), [5, 1, 2] * 4, npz, 3
        )
        yield f"imagenet batches, npz {npz}", made, plain
    import pyarrow
    import pyarrow.parquet

    rows = [{"bytes": makers.encoded(image), "path": None} for image in colour]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows, "label": labels}), work / "set.parquet")
    yield "parquet", work / "set.parquet", plain


def data(work: Path) -> Found:
    for k, (name, source, options) in enumerate(sources(work)):
        dest = work / f"prepared {k}"
        prepare(source, dest, options)
        yield name, {str(p.relative_to(dest)): p.read_bytes() for p in dest.rglob("*.npy")}


# --- f. an evaluation


class Quiet(Screen):
    def say(self, text: str) -> None: ...
    def advance(self, amount: int, note: str | None = None) -> None: ...

    def bar(self, *_: Any) -> Any:
        return contextlib.nullcontext(self)


def evaluations(work: Path) -> Found:
    """Every number, rounded to 12 significant digits."""
    os.environ[CACHE_VARIABLE] = str(work / "cache")
    model = store.save(small(classes=10, mid_t=[0.8]), work / "model")
    near = digits().train.images[::20] ^ torch.from_numpy(makers.pixels(75, 1, 8, 8) // 8)
    np.savez(work / "near.npz", arr_0=near.permute(0, 2, 3, 1).numpy())
    inception, _ = write_inception(work, "small.pt", 96)
    protocol = INCEPTION.model_copy(update={"dim": 96})
    inception.with_suffix(".yaml").write_text(protocol.model_dump_json(), encoding="utf-8")
    cases: dict[str, dict[str, Any]] = {
        "classifier": {"blocks": 2, "steps": (1, 2), "extrapolate": True},
        "classifier, guided": {"omega": 1.5, "label_rule": "uniform", "covariance": "biased", "x_flip": True},
        "classifier, search": {"search": "mid-t", "search_samples": 30, "search_evaluations": 7},
        "file, inception": {
            "model": work / "near.npz", "features": str(inception),
            "metrics": ("fid", "is", "kid", "pr", "memorisation"),
        },
    }  # fmt: skip
    for name, wanted in cases.items():
        given: Any = {"model": model, "out": work / name, "data": "digits", "samples": 60} | wanted
        Job(Evaluation(**given), Quiet()).run()
        results = json.loads((work / name / "results.json").read_text(encoding="utf-8"))
        numbers = {
            f"{row['name']}, block {k}, {metric}": f"{value:.12g}"
            for row in results["rows"]
            for k, block in enumerate(row["blocks"])
            for metric, value in sorted(block["values"].items())
        }
        NUMBERS[name] = numbers
        yield name, numbers
        yield (
            f"{name}, extremes",
            [[b["worst"], b["memorised"]] for r in results["rows"] for b in r["blocks"]],
        )


# --- all of it

NUMBERS: dict[str, dict[str, str]] = {}
"""What the evaluations gave, to be read beside their sums."""
PARTS: dict[str, Callable[[Path], Found]] = {
    "training": trainings,
    "estimators": lambda _: estimates(),
    "objectives": lambda _: objectives(),
    "times": lambda _: clocks(),
    "samplers": lambda _: samplers(),
    "networks": lambda _: networks(),
    "data": data,
    "evaluation": evaluations,
}


def record(parts: Iterable[str]) -> dict[str, Any]:
    """The sums of these parts, and what they were made on."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    sums, seconds = {}, {}
    for part in parts:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as work:
            for name, value in PARTS[part](Path(work)):
                key = f"{part}: {name}"
                if key in sums:
                    raise ValueError(f"{key} is there twice")
                sums[key] = sum_of(value)
        seconds[part] = round(time.perf_counter() - began, 1)
        print(f"{part}: {seconds[part]} s", file=sys.stderr, flush=True)
    return {"machine": machine(), "seconds": seconds, "numbers": NUMBERS, "sums": sums}


def differences(old: dict[str, str], new: dict[str, str], parts: Iterable[str]) -> list[str]:
    """Names of these parts whose sum differs, or that only one of the records has."""
    names = [name for name in sorted(old | new) if name.partition(": ")[0] in parts]
    return [name for name in names if old.get(name) != new.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=RESULT, help="where the record is written")
    parser.add_argument("--compare", type=Path, help="the record that the sums are held against")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these parts")
    arguments = parser.parse_args()
    old = json.loads(arguments.compare.read_text(encoding="utf-8")) if arguments.compare else None
    new = record(arguments.parts)
    write_atomically(arguments.out, json.dumps(new, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    if old is None:
        return
    differ = differences(old["sums"], new["sums"], arguments.parts)
    for name in differ:
        print(f"differs: {name}")
    print(f"{len(differ)} of {len(new['sums'])} sums differ from {arguments.compare}")
    if differ and old["machine"] != new["machine"]:
        print("the records are of different machines: see `machine` in both")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
