"""How `consistune data` shows a source, a prepared data set, and the progress of its preparation."""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from consistune.cli.screen import Screen, console
from consistune.data.prepare.run import Progress
from consistune.data.prepared import META, Meta
from consistune.data.sources.base import Source, SourceOptions, printable
from consistune.data.sources.detect import open_source

MAX_BAD = 10
"""At most so many bad images are listed."""
MAX_REASONS = 4
"""At most so many reasons are listed for a split."""
MAX_CLASSES = 20
"""At most so many classes are listed."""


class PreparationProgress(Progress):
    """Shows what the source is, and a bar. The bar is closed by the exit stack."""

    def __init__(self, screen: Screen, stack: ExitStack) -> None:
        self.screen, self.stack = screen, stack

    def started(self, source: Source, done: int) -> None:
        lines = [f"{source.kind}: {len(source):,} images, {len(source.class_names):,} classes"]
        lines += [f"note: {note}" for note in source.notes]
        if done:
            lines.append(f"continuing after {done:,} images of an earlier run")
        self.screen.say(escape("\n".join(lines)))
        self.bar = self.stack.enter_context(self.screen.bar("preparing", len(source), done))

    def advanced(self, count: int) -> None:
        self.bar.advance(count)


def counts(meta: Meta) -> str:
    """ "50,000 train and 10,000 held-out images, 3×32×32, 10 classes"."""
    channels, height, width = meta.shape
    images = " and ".join(f"{part.images:,} {side}" for side, part in meta.parts.items())
    return f"{images} images, {channels}×{height}×{width}, {len(meta.class_names):,} classes"


def print_outcome(meta: Meta, dest: Path) -> None:
    """Print on standard error what became of every image, and the notes."""
    lines = [f"left out: {len(meta.bad):,}"] if meta.bad else []
    lines += [f"  {printable(entry['image'])} {entry['reason']}" for entry in meta.bad[:MAX_BAD]]
    if len(meta.bad) > MAX_BAD:
        lines.append(f"  … all are listed in {dest / META}")
    lines += [f"note: {note}" for note in meta.notes]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(accounts_table(meta))
    console.print(counts(meta), highlight=False)


def accounts_table(meta: Meta) -> Table:
    """For each split: the images found, taken, left out, and why."""
    table = Table("split", "found", "taken", "left out", "why")
    for column in table.columns[1:4]:
        column.justify = "right"
    for account in meta.accounts:
        reasons = list(account.left_out.items())
        why = [f"{count:,} {reason}" for reason, count in reasons[:MAX_REASONS]]
        why += [f"{sum(n for _, n in reasons[MAX_REASONS:]):,} for other reasons"] * (
            len(reasons) > MAX_REASONS
        )
        numbers = (account.found, account.taken, account.found - account.taken)
        cells = (printable(account.split), *(f"{n:,}" for n in numbers), printable("; ".join(why)))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def print_prepared(path: Path, meta: Meta) -> None:
    """Print what a prepared data set holds and how it was made."""
    print(f"{path}: {counts(meta)}, {meta.bytes / 1e6:,.1f} MB")
    print(f"source      {meta.source['kind']}: {meta.source['path']}")
    print(f"            sha256 {meta.source['sha256']}")
    transform = ", ".join(f"{key} {value}" for key, value in meta.transform.items() if value is not None)
    print(f"transform   {transform}")
    print(f"held out    {meta.held_out if meta.held_out is not None else 'nothing'}")
    print(f"left out    {len(meta.bad):,} images")
    for note in meta.notes:
        print(f"note        {note}")
    if meta.accounts:
        Console(file=sys.stdout).print(accounts_table(meta))
    table = Table("class", "name", *meta.parts)
    for column in (0, *range(2, 2 + len(meta.parts))):
        table.columns[column].justify = "right"
    for k, name in enumerate(meta.class_names[:MAX_CLASSES]):
        sizes = [part.offsets[k + 1] - part.offsets[k] for part in meta.parts.values()]
        table.add_row(str(k), Text(printable(name)), *(f"{size:,}" for size in sizes))
    more = len(meta.class_names) - MAX_CLASSES
    if more > 0:
        table.caption = f"and {more:,} more"
    Console(file=sys.stdout).print(table)


def print_source(path: Path) -> None:
    """Print what a source holds and the command that prepares it."""
    with tempfile.TemporaryDirectory() as work:
        source = open_source(path, SourceOptions(), Path(work))
    test_images = 0 if source.own_held_out is None else int(source.own_held_out.sum())
    classes = f"{len(source.class_names):,} classes" if source.labelled else "no labels"
    print(f"{path}: {source.kind}, not prepared")
    print(f"            {len(source):,} images, {classes}, {test_images:,} of them a test set of its own")
    if source.groups is not None:
        print(f"            {len(set(source.groups)):,} groups (--split-by group keeps each on one side)")
    for name, reason in source.skipped[:MAX_BAD]:
        print(f"            {printable(name)} {reason}")
    size = "" if source.shape is not None else " --size SIZE"
    print(f"prepare     consistune data prepare {path} DEST{size}")
