"""`consistune analyze`: measure the noise estimators on a data set."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from consistune.cli.options import parse_times
from consistune.cli.screen import console
from consistune.errors import UserError


def analyze(
    data: Annotated[str, Argument(help="digits, mixture (8 Gaussians), a prepared folder, or a ZIP.")],
    out: Annotated[Path, Option(help="The folder for the tables and plots.")] = Path("runs/analysis"),
    conditional: Annotated[
        bool | None, Option(help="Take references from the image's class (default), or from all.")
    ] = None,
    times: Annotated[str | None, Option(help="Noise levels t, e.g. 0.1,1,10; default: 0.02 to 80.")] = None,
    queries: Annotated[int, Option(help="Number of noisy images at each t.")] = 512,
    batch: Annotated[
        int | None, Option(help="Size of the batches that batch references come from; default: 128.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the images and the noise.")] = 0,
) -> None:
    """Measure the score-identity target on a data set: variance, bias and number of references against t."""
    from consistune.analyze.measures import TIMES
    from consistune.analyze.report import NAMES, RECORD, analyze_mixture
    from consistune.analyze.report import analyze as analyze_images
    from consistune.data.images import load_data, read_unprepared
    from consistune.system.own import check_folder

    levels = parse_times(times, "--times") or TIMES
    if any(not 0 < t < 1e6 for t in levels):
        raise UserError(f"{times} has a time that is not positive, or above a million", "--times")
    if batch is not None and batch < 2:
        raise UserError(f"{batch} is too small", "--batch", "use at least 2")
    check_folder(out, "--out", NAMES, *RECORD)
    if data == "mixture":
        for option, value in {"--batch": batch, "--conditional": conditional}.items():
            if value is not None:
                raise UserError("has no effect on the mixture", option, "leave it out")
        images = None
    else:
        unprepared = data.lower().endswith(".zip")
        images = read_unprepared(Path(data), _say) if unprepared else load_data(data).train
    console.print("measuring; this takes some minutes for a large data set", highlight=False)
    if images is None:
        paths = analyze_mixture(out, times=levels, queries=queries, seed=seed)
    else:
        paths = analyze_images(
            images.exact,
            None if conditional is False else images.labels,
            out,
            name=Path(data).stem,
            times=levels,
            batch_size=batch or 128,
            queries=queries,
            seed=seed,
        )
    for path in paths:
        print(path)


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
