"""consistune data prepare and consistune data info"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistune.cli.common import Screen, console
from consistune.data.prepare import pool
from consistune.data.prepare.run import PrepareOptions, Progress, prepare
from consistune.data.prepare.split import Split
from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepared import META, Meta, damaged, is_prepared, open_part, read_meta
from consistune.data.sources.base import Source, SourceOptions, printable
from consistune.data.sources.detect import open_source
from consistune.errors import UserError

SHOWN_BAD = 10
SHOWN_CLASSES = 20


def run_prepare(
    source: Path,
    dest: Path,
    strict: bool,
    workers: int | None,
    *,
    options: dict[str, Any],
    wanted: dict[str, Any],
    split: dict[str, Any],
) -> None:
    """Prepare with a progress line; list what was bad; print the folder."""
    if workers is not None and workers < 1:
        raise UserError(f"{workers} processes cannot work", "--workers", "1 or more")
    chosen = PrepareOptions(
        SourceOptions(**options), ImageOptions(**wanted), Split(**split), strict, workers or pool.cores()
    )
    with Screen() as screen, ExitStack() as stack:
        meta = prepare(source, dest, chosen, _Shown(screen, stack))
    _say_bad(meta, dest)
    console.print(_counts(meta), highlight=False)
    print(dest)


class _Shown(Progress):
    """What is being prepared, and a bar."""

    def __init__(self, screen: Screen, stack: ExitStack) -> None:
        self.screen, self.stack = screen, stack

    def started(self, source: Source, done: int) -> None:
        self.screen.say(f"{source.kind}: {len(source):,} images, {len(source.class_names):,} classes")
        for note in source.notes:
            self.screen.say(f"note: {note}")
        if done:
            self.screen.say(f"going on after {done:,} images of an earlier run")
        self.bar = self.stack.enter_context(self.screen.bar("preparing", len(source), done))

    def advanced(self, count: int) -> None:
        self.bar.advance(count)


def _say_bad(meta: Meta, dest: Path) -> None:
    if meta.bad:
        console.print(f"{len(meta.bad):,} images were left out:", highlight=False, markup=False)
        for entry in meta.bad[:SHOWN_BAD]:
            console.print(f"  {printable(entry['image'])} {entry['reason']}", highlight=False, markup=False)
        if len(meta.bad) > SHOWN_BAD:
            console.print(f"  … all are listed in {dest / META}", highlight=False, markup=False)


def _counts(meta: Meta) -> str:
    channels, height, width = meta.shape
    counts = " and ".join(f"{part.images:,} {side}" for side, part in meta.parts.items())
    return f"{counts} images, {channels}×{height}×{width}, {len(meta.class_names):,} classes"


def run_info(path: Path, verify: bool) -> int:
    """What a prepared set, or a source, is. With `verify`, status 1 where a file is not as it was written."""
    if not is_prepared(path):
        if verify:
            raise UserError("is not a prepared set: there is nothing to verify", str(path))
        _source_info(path)
        return 0
    meta = read_meta(path)
    for side in meta.parts:
        open_part(path, meta, side)
    print(f"{path}: {_counts(meta)}, {meta.bytes / 1e6:,.1f} MB")
    print(f"source      {meta.source['kind']}: {meta.source['path']}")
    print(f"            sha256 {meta.source['sha256']}")
    print(f"transform   {_described(meta)}")
    print(f"held out    {meta.held_out if meta.held_out is not None else 'nothing'}")
    print(f"left out    {len(meta.bad):,} images")
    for note in meta.notes:
        print(f"note        {note}")
    _print_classes(meta)
    if verify:
        wrong = damaged(path, meta)
        print(
            f"verified    {'damaged: ' + ', '.join(wrong) if wrong else 'all files are as they were written'}"
        )
        return int(bool(wrong))
    return 0


def _described(meta: Meta) -> str:
    return ", ".join(f"{key} {value}" for key, value in meta.transform.items() if value is not None)


def _print_classes(meta: Meta) -> None:
    table = Table("class", "name", *meta.parts)
    for column in (0, *range(2, 2 + len(meta.parts))):
        table.columns[column].justify = "right"
    for k, name in enumerate(meta.class_names[:SHOWN_CLASSES]):
        sizes = [part.offsets[k + 1] - part.offsets[k] for part in meta.parts.values()]
        table.add_row(str(k), Text(printable(name)), *(f"{size:,}" for size in sizes))
    left = len(meta.class_names) - SHOWN_CLASSES
    if left > 0:
        table.caption = f"and {left:,} more"
    Console(file=sys.stdout).print(table)


def _source_info(path: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        source = open_source(path, SourceOptions(), Path(work))
    own = 0 if source.own_held_out is None else int(source.own_held_out.sum())
    classes = f"{len(source.class_names):,} classes" if source.labelled else "no labels"
    print(f"{path}: {source.kind}, not prepared")
    print(f"            {len(source):,} images, {classes}, {own:,} of them a test set of its own")
    if source.groups is not None:
        print(f"            {len(set(source.groups)):,} groups (--split-by group keeps each on one side)")
    for name, reason in source.skipped[:SHOWN_BAD]:
        print(f"            {printable(name)} {reason}")
    size = "" if source.shape is not None else " --size SIZE"
    print(f"prepare     consistune data prepare {path} DEST{size}")
