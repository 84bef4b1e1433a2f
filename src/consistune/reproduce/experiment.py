"""What every kind of experiment is: its YAML's keys, and the function that makes it."""

from typing import ClassVar

from consistune.reproduce.results import Outcome
from consistune.reproduce.spec import Description
from consistune.reproduce.study import Study


class Experiment(Description):
    """One kind of experiment; a subclass adds its keys and `make`.

    Attributes:
        tunes: whether it tunes consistency models on the study's data, so that --set has an effect.
        on_data: whether it uses the study's data at all.
    """

    tunes: ClassVar[bool] = True
    on_data: ClassVar[bool] = True

    def make(self, study: Study) -> Outcome:
        """Train, or take what is there, and measure. Raises training.run.Interrupted after a signal."""
        raise NotImplementedError
