"""consistune ema"""

from pathlib import Path

from consistune.nn import store
from consistune.train import posthoc


def reconstruct(run: Path, std: float, at: int | None, out: Path) -> None:
    """Write the average of that length. Raises UserError for a run without fitting snapshots."""
    store.save(posthoc.reconstruct(run, std, at), out)
    print(out)
