"""consistune analyze"""

from pathlib import Path

from consistune.analyze import analyze, analyze_mixture
from consistune.analyze.measures import TIMES
from consistune.cli.common import console, parse_times
from consistune.data.images import load_data, read_unprepared
from consistune.errors import UserError


def run(
    data: str, out: Path, conditional: bool, times_text: str | None, queries: int, batch: int, seed: int
) -> None:
    """Measure the estimators on a data set; print the paths of the tables and plots written."""
    times = parse_times(times_text, "--times") or TIMES
    if any(t <= 0 for t in times):
        raise UserError(f"{times_text} has a time that is not positive", "--times")
    if queries < 2 or batch < 2:
        raise UserError("variance needs at least two", "--queries, --batch")
    console.print("measuring; some minutes where the set is large", highlight=False)
    if data == "mixture":
        paths = analyze_mixture(out, times=times, queries=queries, seed=seed)
    else:
        images = read_unprepared(Path(data)) if data.endswith(".zip") else load_data(data).train
        paths = analyze(
            images.images,
            images.labels if conditional else None,
            out,
            name=Path(data).stem,
            times=times,
            batch_size=batch,
            queries=queries,
            seed=seed,
        )
    for path in paths:
        print(path)
