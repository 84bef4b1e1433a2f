"""`consistune check`: is a run normal?"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from consistune.errors import printable

if TYPE_CHECKING:
    from consistune.training.check import Verdict

SHARES = (5, 10, 25, 50, 75, 100)
"""Percent of training that the table shows."""


def check(
    run: Annotated[Path, Argument(help="A run's folder; the run may still be training.")],
    against: Annotated[
        str | None,
        Option(help="A recipe's name, or a file of expected curves; default: those of the run's recipe."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compare a run's log with the expected curves of its recipe; exit status 1 where it is not normal."""
    from consistune.training.check import check_run

    verdict = check_run(run, against)
    if as_json:
        print(json.dumps(as_dict(verdict), indent=1, allow_nan=False))
    else:
        _print(verdict)
    if not verdict.normal:
        raise typer.Exit(1)


def as_dict(verdict: "Verdict") -> dict[str, Any]:
    """A verdict as plain data; a value that is not finite is None."""
    expected = verdict.compared.expected
    return {
        "run": verdict.run,
        "normal": verdict.normal,
        "images": verdict.images,
        "of": verdict.total,
        "compared_with": None if expected is None else expected.name,
        "not_compared": verdict.compared.reason or None,
        "differences": [str(difference) for difference in verdict.compared.differences],
        "left": [
            {
                **{name: getattr(one, name) for name in ("figure", "step", "images")},
                "value": one.value if math.isfinite(one.value) else None,
                "expected": [one.band.low, one.band.high],
            }
            for one in verdict.left
        ],
        **{name: [vars(one) for one in getattr(verdict, name)] for name in ("problems", "causes")},
    }


def _print(verdict: "Verdict") -> None:
    from rich.console import Console

    console = Console(soft_wrap=True)

    def say(text: str) -> None:
        console.print(printable(text), highlight=False, markup=False)

    expected, share = verdict.compared.expected, verdict.images / verdict.total
    seen = f"{verdict.run}: {verdict.images:,} of {verdict.total:,} images ({min(share, 1):.0%})"
    if expected is None:
        say(f"{seen}; {verdict.compared.reason}")
    else:
        say(f"{seen}, compared with {len(expected.runs)} runs of {expected.name}")
        for difference in verdict.compared.differences:
            say(f"  its recipe differs: {difference}")
        if verdict.curves:
            console.print(_table(verdict))
    for one in verdict.left:
        say(f"  {one}")
    for problem in verdict.problems:
        say(f"  {problem.what}; try: {problem.remedy}")
    for cause in verdict.causes:
        say(f"likely: {cause.what}; {cause.remedy}")
    say(_word(verdict))


def _word(verdict: "Verdict") -> str:
    """The verdict in a line."""
    from consistune.training.expected import PARTS

    if not verdict.normal:
        return (
            f"not normal: {len(verdict.left)} figures left their band, {len(verdict.problems)} other faults"
        )
    if verdict.compared.expected is None:
        return "no fault found; there are no expected curves to say whether its losses are normal"
    if not verdict.curves:
        return (
            f"no fault found; too early to compare its losses: that begins at {100 // PARTS} % of its images"
        )
    return "normal"


def _table(verdict: "Verdict") -> Any:
    """The figures of the run at some shares of training, over what is expected there.

    Of the losses at single noise levels, those that left their band.
    """
    from rich.table import Column, Table
    from rich.text import Text

    from consistune.training.expected import PARTS
    from consistune.training.metrics_file import EVALUATION

    expected = verdict.compared.expected
    assert expected is not None
    parts = [share * PARTS // 100 - 1 for share in SHARES]
    figures = Column(overflow="fold", min_width=24)
    table = Table(figures, *(f"{share} %" for share in SHARES), box=None, pad_edge=False, header_style="")
    left = {one.figure for one in verdict.left}
    common = expected.curves.keys() & verdict.curves.keys()
    for figure in sorted(name for name in common if name in left or not name.startswith("loss/")):
        bands, values = expected.bands(figure), verdict.curves[figure]
        own, range_ = [Text(figure.removeprefix(EVALUATION))], [Text("  expected", style="dim")]
        for part in parts:
            value, band = values[part], bands[part]
            outside = value is not None and band is not None and abs(band.excess(value)) > 1
            own.append(Text("–" if value is None else f"{value:.3g}", style="bold red" if outside else ""))
            range_.append(Text("–" if band is None else f"{band.low:.2g}–{band.high:.2g}", style="dim"))
        table.add_row(*own)
        table.add_row(*range_)
    return table
