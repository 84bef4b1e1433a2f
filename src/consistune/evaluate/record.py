"""What results.json says of an evaluation."""

import statistics
import sys
import time
from dataclasses import asdict
from typing import Any

import consistune
from consistune.evaluate.draws import Drawing
from consistune.evaluate.request import Wanted
from consistune.metrics.suite import Suite
from consistune.system.host import machine
from consistune.system.processes import rank_and_count


def facts(wanted: Wanted, suite: Suite, model_digest: str, began: float) -> dict[str, Any]:
    """Everything needed to repeat the numbers; `began`: the job's start on `time.perf_counter`."""
    reference = suite.reference
    return {
        "model": {"path": str(wanted.model), "sha256": model_digest},
        "data": {"name": wanted.data, "sha256": reference.digest},
        "reference": {
            "source": reference.source,
            "images": reference.count,
            "mirrored": reference.mirrored,
            "covariance": reference.convention or "as its file has it",
        },
        "extractor": {
            "name": suite.extractor.name,
            "identity": suite.extractor.identity,
            "file_sha256": suite.extractor.digest,
            "protocol": suite.extractor.protocol.model_dump(mode="json"),
        },
        "metrics": list(suite.metrics),
        "covariance": suite.convention,
        "samples": wanted.samples,
        "labels": wanted.label_rule,
        "environment": {
            "consistune": consistune.__version__,
            "command": sys.argv,
            "processes": rank_and_count()[1],
            "device": str(wanted.device),
            **machine(),
        },
        "seconds": time.perf_counter() - began,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summarise(blocks: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean, minimum and standard error over the blocks; no error of one block."""
    names = dict.fromkeys(name for block in blocks for name in block)
    summary: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [block[name] for block in blocks]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        summary[name] = {"mean": statistics.fmean(values), "min": min(values), "standard_error": error}
    return summary


def described(drawing: Drawing) -> dict[str, Any]:
    """The sampler's settings as results.json holds them."""
    sampler = drawing.sampler
    return {
        "kind": type(sampler).__name__,
        **asdict(sampler),  # type: ignore[call-overload]
        "evaluations": drawing.evaluations,
        "omega": drawing.omega,
        "labels": drawing.label_rule if drawing.model.num_classes else None,
    }
