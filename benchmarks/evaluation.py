"""The cost of the metrics of `consistune evaluate` next to the network and the feature extractor.

    python benchmarks/evaluation.py [--only large inception digits] [--threads N]          some minutes

large: 50,000 samples × 2048 features, every metric computed from features (Fréchet, kernel distance,
  Inception Score, precision and recall) and the pixel search of memorisation on 10,000 samples of 32×32×3,
  against a reference of 50,000. A random projection replaces the network and the extractor, so that the
  metrics' own seconds and the peak memory show. The reference's pass and radii, which are cached, do not
  count.
inception: seconds an image of a network with the Inception's layers (`inception.py`). The overhead is the
  metrics' share of 50,000 such passes; the generator's time, and the second pass for the Inception Score,
  would lower it.
digits: 10,000 one-step samples with all metrics, the classifier's training and a first reference included.
"""

import json
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistune.bench.timing import alternate, in_own_process
from consistune.data.images import DataSplit, ImageSet
from consistune.evaluation.job import Job
from consistune.evaluation.request import Request
from consistune.metrics.features import Extractor, load_extractor
from consistune.metrics.metric import Setup
from consistune.metrics.sheet import INCEPTION
from consistune.metrics.statistics import build_reference
from consistune.metrics.suite import Suite
from consistune.system.host import machine, peak_bytes
from harness import Benchmark, Record
from inception import write_inception
from tables import markdown

benchmark = Benchmark(__doc__)
benchmark.parser.add_argument("--model", type=Path, default=Path("runs/demo/sct"), help="a digits model")
SAMPLES, FEATURES, CLASSES = 50_000, 2048, 1008
SIDE, INCEPTION_IMAGES = 32, 64


class Projection:
    """2048 ReLU features and class probabilities of 32×32×3 images, at a thousandth of Inception's cost."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.body = torch.randn(3 * SIDE * SIDE // 12, FEATURES, generator=generator) / 16
        self.output = torch.randn(FEATURES, CLASSES, generator=generator) / 45

    def __call__(self, x: Tensor, return_features: bool = False, **_: bool) -> Tensor:
        pooled = nn.functional.avg_pool2d((x.float() - 128) / 64, 2).flatten(1)
        features = (pooled[:, : len(self.body)] @ self.body).relu()
        return features if return_features else (features @ self.output).softmax(1)


def images(rows: Sequence[int]) -> Tensor:
    """Smooth random colour images, determined by the first row."""
    generator = torch.Generator().manual_seed(rows[0])
    coarse = torch.rand(len(rows), 3, 8, 8, generator=generator)
    fine = 0.1 * torch.randn(len(rows), 3, SIDE, SIDE, generator=generator)
    x = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear") + fine
    return (255 * x.clamp(0, 1)).byte()


def metrics(samples: int) -> Record:
    """Seconds of the metrics and peak memory, in a process of its own."""
    base = peak_bytes() / 2**20
    training = torch.empty(samples, 3, SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, samples, 500):
        training[start : start + 500] = images(range(10**6 + start, 10**6 + min(start + 500, samples)))
    labels = torch.zeros(len(training), dtype=torch.long)
    data = DataSplit(ImageSet("made", training, labels, ("all",)), None)
    extractor = Extractor(INCEPTION, Projection(), "projection", torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        reference = build_reference("made", training, extractor, cache=Path(folder))
        began = time.perf_counter()
        reference.feature_radii(extractor.device)
        radii_seconds = time.perf_counter() - began
        suite = Suite(Setup(extractor, reference, data), ("fid", "kid", "is", "pr", "memorisation"))
        outcome = suite.run(lambda seeds: (images(seeds), None), range(samples))
    return {
        "samples": samples,
        "seconds": outcome.seconds,
        "reference_radii_seconds": radii_seconds,
        "values": outcome.values,
        "peak_mib": peak_bytes() / 2**20,
        "of_it_imports_mib": base,
        "of_it_training_images_mib": training.numel() / 2**20,
    }


def inception(rounds: int) -> Record:
    """Seconds an image of the features' pass, by rounds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inception-2015-12-05.pt"
        multiply_adds = write_inception(file)
        extractor = load_extractor(str(file))
    batch = images(range(INCEPTION_IMAGES))
    timing = alternate({"pass": lambda: extractor(batch)}, rounds)["pass"]
    return {
        "gmac_an_image": multiply_adds,
        "seconds_an_image": [s / INCEPTION_IMAGES for s in timing.seconds],
    }


class Silent:
    def say(self, text: str) -> None: ...
    def advance(self, amount: int, note: str | None = None) -> None: ...

    def bar(self, *_: Any) -> Any:
        return nullcontext(self)


def digits(model: Path, samples: int) -> Record:
    """A whole `consistune evaluate` on the digits, with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONSISTUNE_CACHE"] = folder
        began = time.perf_counter()
        Job(Request(model, Path(folder) / "out", "digits", samples=samples, steps=(1,)), Silent()).run()
        seconds = time.perf_counter() - began
        row = json.loads((Path(folder) / "out" / "results.json").read_text())["rows"][0]
    return {"seconds": seconds, "parts": row["blocks"][0]["seconds"], "metrics": sorted(row["summary"])}


def on_threads(threads: int, measure: Callable[..., Record], *arguments: object) -> Record:
    torch.set_num_threads(threads)
    return measure(*arguments)


def cost_table(record: Record) -> str:
    large, image = record["large"], sorted(record["inception"]["seconds_an_image"])
    memory = f"{large['peak_mib']:.0f} MiB, of it {large['of_it_imports_mib']:.0f} imports and "
    memory += f"{large['of_it_training_images_mib']:.0f} training images"
    rows = [
        (f"metrics, {large['samples']:,} samples × {FEATURES}", f"{large['seconds']['metrics']:.0f} s"),
        ("an Inception's pass over them", f"{record['extractor_seconds']:,.0f} s"),
        ("", f"{image[0]:.3f} to {image[-1]:.3f} s an image, {len(image)} rounds of {INCEPTION_IMAGES}"),
        ("the metrics' share of it", f"**{100 * record['overhead']:.1f} %**"),
        ("peak memory", f"**{memory}**"),
        (
            "digits, 10,000 one-step samples, all metrics, empty cache",
            f"**{record['digits']['seconds']:.0f} s**",
        ),
    ]
    return markdown(["", f"{record['threads']} thread(s) of {record['machine']['processor']}"], rows)


@benchmark.section(
    "evaluate_overhead.json",
    ("large", "inception", "digits"),
    threads=os.cpu_count() or 1,
    tables={("measures.md", "cost"): cost_table},
)
def evaluate_overhead(given: Namespace, part: str) -> Record:
    """Each part in a process of its own, because the peak memory belongs to a process."""
    samples = 1_000 if given.quick else SAMPLES
    measure: dict[str, tuple[Any, ...]] = {
        "large": (metrics, samples),
        "inception": (inception, given.rounds),
        "digits": (digits, given.model, min(10_000, samples)),
    }
    threads = torch.get_num_threads()
    measured = {part: in_own_process(on_threads, threads, *measure[part])}
    record = given.record | measured
    if "large" in record and "inception" in record:
        passes = record["large"]["samples"] * statistics.median(record["inception"]["seconds_an_image"])
        measured |= {"extractor_seconds": passes, "overhead": record["large"]["seconds"]["metrics"] / passes}
    return {"machine": machine(), "threads": threads} | measured


if __name__ == "__main__":
    benchmark.main()
