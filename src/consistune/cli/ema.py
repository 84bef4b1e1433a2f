"""`consistune ema`: averages of a run's weights."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

app = typer.Typer(no_args_is_help=True, help="Make averages of a run's weights.")


@app.command()
def reconstruct(
    run: Annotated[Path, Argument(help="A run's folder with snapshots of power-function averages.")],
    std: Annotated[float, Option(help="The relative length of the average, from 0 to 0.289.")],
    out: Annotated[Path, Option(help="The model folder to write.")],
    at: Annotated[int | None, Option(help="Number of images seen; default: the latest snapshot's.")] = None,
) -> None:
    """Make an average of any length from a run's snapshots (EDM2's post-hoc EMA).

    A model folder at --out is replaced; anything else there is refused.
    """
    from consistune.nn import store
    from consistune.system.files import check_writable
    from consistune.training import posthoc

    replaces = store.check_destination(out)
    check_writable(out, "--out", folder=True)
    store.save(posthoc.reconstruct(run, std, at), out)
    if replaces:
        print(f"consistune: the model that was in {out} is replaced", file=sys.stderr)
    print(out)
