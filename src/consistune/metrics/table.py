"""The table of metrics: the names of `--metrics`, and the class of each. It does not import torch."""

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from consistune.errors import UserError, load_entry_point
from consistune.system.again import is_again

if TYPE_CHECKING:
    from consistune.metrics.metric import Metric

GROUP = "consistune.metrics"
"""Entry points of this group add metrics from other packages: name = "package.module:Class"."""
METRICS: dict[str, "str | type[Metric]"] = {
    "fd": "consistune.metrics.frechet:FrechetDistance",
    "fid": "consistune.metrics.frechet:FrechetInceptionDistance",
    "relative": "consistune.metrics.frechet:RelativeFrechet",
    "kid": "consistune.metrics.kernel:KernelDistance",
    "is": "consistune.metrics.inception_score:InceptionScore",
    "pr": "consistune.metrics.precision_recall:PrecisionRecall",
    "memorisation": "consistune.metrics.memorisation:Memorisation",
    "accuracy": "consistune.metrics.accuracy:Accuracy",
}
"""Metrics are computed, and their numbers written, in this order."""


def register(name: str, metric: "str | type[Metric]") -> None:
    """Add a metric: its class, or "package.module:Class". A class that is defined again replaces itself.

    Raises ValueError where the name is another's.
    """
    if not is_again(metric, all_metrics().get(name, metric)):
        raise ValueError(f"there is a metric {name!r} already")
    METRICS[name] = metric


def all_metrics() -> dict[str, "str | type[Metric]"]:
    """METRICS, and after them the entry points that other packages declare."""
    return METRICS | {p.name: p.value for p in entry_points(group=GROUP) if p.name not in METRICS}


def metric_class(name: str) -> "type[Metric]":
    """The class of a metric. Raises UserError for an unknown one, and for one that cannot be imported."""
    known = all_metrics()
    if name not in known:
        raise UserError(f"unknown metric {name!r}", "--metrics", f"known are: {', '.join(known)}")
    metric = known[name]
    return load_entry_point(EntryPoint(name, metric, GROUP)) if isinstance(metric, str) else metric
