"""What the score-identity target buys on a data set: measures, tables and plots."""

from consistune.analyze.measures import (
    discretisation,
    effective_sizes,
    measurable,
    named_estimators,
    target_moments,
    target_variance,
)
from consistune.analyze.report import analyze, analyze_mixture

__all__ = [
    "analyze",
    "analyze_mixture",
    "discretisation",
    "effective_sizes",
    "measurable",
    "named_estimators",
    "target_moments",
    "target_variance",
]
