"""What the score identity buys at each noise level, on real image sets.

    python benchmarks/target_variance.py NAME=ZIP … (EDM's layout); "digits" is always measured

Writes benchmarks/results/target_variance.json and docs/target-variance-NAME.svg.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import torch

from consistune.analyze import measurable, target_variance
from consistune.data.images import digits, read_unprepared
from consistune.pages.plots import Axis, Plot

HERE = Path(__file__).parent
TIMES = (0.1, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 80.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("sets", nargs="*", metavar="NAME=ZIP")
    parser.add_argument("--queries", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = {"digits": (digits().train.images, digits().train.labels)}
    for item in options.sets:
        name, _, path = item.partition("=")
        found = read_unprepared(Path(path))
        data[name] = (found.images, found.labels)
    results = {}
    for name, (images, labels) in data.items():
        start = time.perf_counter()
        rows = target_variance(images, labels, TIMES, queries=options.queries)
        seconds = time.perf_counter() - start
        results[name] = {"images": len(images), "seconds": seconds, "rows": [asdict(row) for row in rows]}
        shown = measurable(rows)
        series = {
            label: tuple(zip(*((r.t, r.relative) for r in shown if r.estimator == label), strict=True))
            for label in dict.fromkeys(row.estimator for row in rows)
        }
        title = f"{name}: error of the target, over one-sample's"
        svg = Plot(series, Axis("t", log=True), Axis("relative to one-sample"), title).svg()
        (HERE.parent / "docs" / f"target-variance-{name}.svg").write_text(svg, encoding="utf-8")
        print(name, f"{seconds:.1f} s", flush=True)
    (HERE / "results" / "target_variance.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
