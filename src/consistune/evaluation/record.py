"""The parts of results.json that say how to repeat an evaluation, and the summary of its blocks."""

import statistics
import sys
import time
from typing import Any

from consistune.evaluation.request import Request
from consistune.metrics.suite import Suite
from consistune.system.host import machine, package_version
from consistune.system.processes import rank_and_count


def facts(request: Request, suite: Suite, model_digest: str, began: float) -> dict[str, Any]:
    """Everything that is needed to repeat the numbers; `began` is the job's start on `time.perf_counter`."""
    setup, reference = suite.setup, suite.setup.reference
    return {
        "model": {"path": str(request.model), "sha256": model_digest},
        "data": {"name": request.data, "sha256": reference.digest},
        "reference": {
            "source": reference.source,
            "images": reference.count,
            "mirrored": reference.mirrored,
            "covariance": reference.convention or "as its file has it",
        },
        "extractor": {
            "name": setup.extractor.name,
            "identity": setup.extractor.identity,
            "file_sha256": setup.extractor.digest,
            "protocol": setup.extractor.protocol.model_dump(mode="json"),
        },
        "metrics": list(suite.metrics),
        "covariance": setup.convention,
        "samples": request.samples,
        "labels": request.label_rule or "data",
        "environment": {
            "consistune": package_version(),
            "command": sys.argv,
            "processes": rank_and_count()[1],
            "device": str(request.device),
            **machine(),
        },
        "seconds": time.perf_counter() - began,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def summarise(blocks: list[dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """Mean, minimum and standard error of each value over the blocks; the error of one block is None."""
    names = dict.fromkeys(name for block in blocks for name in block)
    summary: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [block[name] for block in blocks]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        summary[name] = {"mean": statistics.fmean(values), "min": min(values), "standard_error": error}
    return summary
