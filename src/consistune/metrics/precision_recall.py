"""Improved precision and recall."""

from consistune.metrics.metric import Metric, Result


class PrecisionRecall(Metric):
    """Values "precision" and "recall" of the first 10 000 samples (`neighbours.Neighbourhoods`)."""

    stores_features = True

    def check(self) -> None:
        self.setup.need_real_features()

    def result(self) -> Result:
        near = self.block.neighbourhoods
        return Result(
            {"precision": near.precision, "recall": near.recall},
            worst=self.block.feature_extremes(largest=True),
            memorised=self.block.feature_extremes(largest=False),
        )
