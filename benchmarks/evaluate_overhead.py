"""What the metrics of `consistune evaluate` cost beside the network and the extractor, in time and memory.

    python benchmarks/evaluate_overhead.py --threads 1            some minutes

1. 50,000 samples × 2048 features, every metric that features feed (Fréchet, kernel distance, Inception Score,
   precision and recall, and the pixel search of memorisation on its 10,000 samples of 32×32×3), against a
   reference of 50,000. A random projection stands in for the network and the extractor, so that the metrics'
   own seconds and the peak memory show. The reference's own pass and its radii, which are cached, are not
   counted.
2. The same number of threads passes images through a network of the Inception's layers (`inception.py`,
   random weights, as a TorchScript file): seconds an image, once for the features. The overhead is the
   metrics' share of 50,000 such passes; the generator's own time, and the second pass for the Inception
   Score, would make it smaller.
3. The digits: 10,000 one-step samples, all metrics, the classifier's training and a first reference included.

Writes benchmarks/results/evaluate_overhead.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consistune.data.images import DataSplit, ImageSet
from consistune.evaluate.job import Job
from consistune.evaluate.request import Request
from consistune.metrics.features import Extractor, load_extractor
from consistune.metrics.metric import Setup
from consistune.metrics.sheet import INCEPTION
from consistune.metrics.statistics import build_reference
from consistune.metrics.suite import Suite
from consistune.system.files import write_atomically
from consistune.system.host import machine, peak_bytes
from inception import write_inception
from pages import fill

RESULTS = Path(__file__).parent / "results" / "evaluate_overhead.json"
SAMPLES, FEATURES, CLASSES = 50_000, 2048, 1008
SIDE = 32
INCEPTION_IMAGES, INCEPTION_ROUNDS = 64, 3


class Projection:
    """2048 ReLU features of 32×32×3 images and class probabilities, at a thousandth of Inception's cost."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.body = torch.randn(3 * SIDE * SIDE // 12, FEATURES, generator=generator) / 16
        self.output = torch.randn(FEATURES, CLASSES, generator=generator) / 45

    def __call__(self, x: Tensor, return_features: bool = False, **_: bool) -> Tensor:
        pooled = nn.functional.avg_pool2d((x.float() - 128) / 64, 2).flatten(1)
        features = (pooled[:, : len(self.body)] @ self.body).relu()
        return features if return_features else (features @ self.output).softmax(1)


def images(rows: Sequence[int]) -> Tensor:
    """Smooth random colour images, a function of the row."""
    generator = torch.Generator().manual_seed(rows[0])
    coarse = torch.rand(len(rows), 3, 8, 8, generator=generator)
    fine = 0.1 * torch.randn(len(rows), 3, SIDE, SIDE, generator=generator)
    x = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear") + fine
    return (255 * x.clamp(0, 1)).byte()


def large(samples: int) -> dict[str, Any]:
    """Seconds of the metrics and peak memory of this process."""
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


def inception() -> dict[str, Any]:
    """Seconds an image of the features' pass, by rounds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inception-2015-12-05.pt"
        multiply_adds = write_inception(file)
        extractor = load_extractor(str(file))
    batch = images(range(INCEPTION_IMAGES))
    extractor(batch)
    rounds = []
    for _ in range(INCEPTION_ROUNDS):
        began = time.perf_counter()
        extractor(batch)
        rounds.append((time.perf_counter() - began) / INCEPTION_IMAGES)
    return {"gmac_an_image": multiply_adds, "seconds_an_image": rounds}


class Silent:
    def say(self, text: str) -> None: ...
    def advance(self, amount: int, note: str | None = None) -> None: ...

    @contextmanager
    def bar(self, *_: Any) -> Any:
        yield self


def digits_seconds(model: Path) -> dict[str, Any]:
    """A whole `consistune evaluate` on the digits, with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONSISTUNE_CACHE"] = folder
        began = time.perf_counter()
        Job(Request(model, Path(folder) / "out", "digits", samples=10_000, steps=(1,)), Silent()).run()
        seconds = time.perf_counter() - began
        row = json.loads((Path(folder) / "out" / "results.json").read_text())["rows"][0]
    return {"seconds": seconds, "parts": row["blocks"][0]["seconds"], "metrics": sorted(row["summary"])}


def table(results: dict[str, Any]) -> str:
    """The rows of docs/evaluation.md."""
    big, small = results["large"], results["digits"]
    image = sorted(results["inception"]["seconds_an_image"])
    memory = f"{big['peak_mib']:.0f} MiB, of it {big['of_it_imports_mib']:.0f} imports and "
    memory += f"{big['of_it_training_images_mib']:.0f} training images"
    rows = [
        (f"metrics, {big['samples']:,} samples × {FEATURES}", f"{big['seconds']['metrics']:.0f} s"),
        ("an Inception's pass over them", f"{results['extractor_seconds']:,.0f} s"),
        ("", f"{image[0]:.3f} to {image[-1]:.3f} s an image, {len(image)} rounds of {INCEPTION_IMAGES}"),
        ("the metrics' share of it", f"**{100 * results['overhead']:.1f} %**"),
        ("peak memory", f"**{memory}**"),
        ("digits, 10,000 one-step samples, all metrics, empty cache", f"**{small['seconds']:.0f} s**"),
    ]
    threads = f"{results['threads']} thread(s) of {results['machine']['processor']}"
    return "\n".join([f"| | {threads} |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part", nargs="?", choices=["large", "inception", "digits"], help="One part; all by default."
    )
    parser.add_argument("--model", type=Path, default=Path("runs/demo/sct"), help="A model of the digits.")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "large": lambda: large(arguments.samples),
        "inception": inception,
        "digits": lambda: digits_seconds(arguments.model),
    }
    if arguments.part:
        print(json.dumps(parts[arguments.part]()))
        return
    results: dict[str, Any] = {"machine": machine(), "threads": arguments.threads}
    for part in parts:  # each in a process of its own: the peak memory is a process's
        command = [sys.executable, __file__, part, *sys.argv[1:]]
        results[part] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    passes = arguments.samples * statistics.median(results["inception"]["seconds_an_image"])
    results["extractor_seconds"] = passes
    results["overhead"] = results["large"]["seconds"]["metrics"] / passes
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    fill("evaluation.md", "cost", table(results))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
