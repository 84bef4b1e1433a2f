"""`consistune data prepare`: any source → the one prepared format, streamed, over all cores, resumable.

What the result holds is a function of source and options alone: not of workers, pieces, or interruptions.
Labels are known first, so every image has its row before it is read. The work happens in DEST.part:
`data/` becomes DEST in the end, `work/` holds the journal and what had to be unpacked.
"""

import shutil
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.prepare import npy, pool
from consistune.data.prepare.journal import Journal
from consistune.data.prepare.plan import Plan, finish
from consistune.data.prepare.split import Rows, Split, held_out
from consistune.data.prepare.survey import Wanted, survey
from consistune.data.prepare.work import DIGEST, Job, Piece, convert
from consistune.data.prepared import IMAGES, Meta
from consistune.data.sources.base import Source, shown
from consistune.data.sources.detect import SourceOptions, open_source
from consistune.errors import UserError
from consistune.system import files

SYNC_SECONDS = 0.5
"""At most so much work is done again after a kill."""


@dataclass(frozen=True)
class Options:
    """How to prepare.

    Attributes:
        source: what the source cannot tell of itself.
        wanted: size, crop, filter, background, mode.
        split: how a source without a test set is divided.
        strict: stop at the first bad image.
        workers: processes; 1: this one.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    wanted: Wanted = field(default_factory=Wanted)
    split: Split = field(default_factory=Split)
    strict: bool = False
    workers: int = 1


class Progress:
    """Told of the progress; this one says nothing."""

    def started(self, source: Source, done: int) -> None:
        """The source has been understood; an earlier run has done so many of its images."""

    def advanced(self, count: int) -> None:
        """So many images more are done and on the disk."""


SILENT = Progress()


def prepare(path: Path, dest: Path, options: Options, progress: Progress = SILENT) -> Meta:
    """Prepare a source as a folder.

    Raises UserError for a source that cannot be read, options that do not fit it, a destination that is
    there, no image left, and with `strict` the first bad image.
    """
    if dest.exists():
        raise UserError("is already there", str(dest), "remove it, or choose another")
    part = dest.with_name(dest.name + ".part")
    work, data = part / "work", part / "data"
    with Journal(work / "journal") as journal:
        try:
            source = open_source(path, options.source, work / "unpacked")
            if options.strict and source.skipped:
                name, reason = source.skipped[0]
                raise UserError(f"{shown(name)} {reason}", str(path), "leave out --strict")
            transform, shape = survey(source, options.wanted)
            rows = _rows(source, options.split)
            plan = Plan(source, transform, shape, rows, options.split, data, work)
            _begin(plan, journal)
        except BaseException:
            if not journal.begun:
                shutil.rmtree(part)
            raise
        pieces = source.pieces()
        progress.started(source, sum(b - a for k, (a, b) in enumerate(pieces) if k in journal.done))
        _run(plan, journal, options, progress)
        meta = finish(plan, journal)
        data.rename(dest)
        files.sync(dest.parent)
        shutil.rmtree(part)
    return meta


def _rows(source: Source, split: Split) -> Rows:
    if source.own_held_out is None:
        return Rows.of(source.labels, held_out(source.labels, source.groups, split))
    if split.fraction:
        raise UserError(
            f"the source has a test set of its own ({int(source.own_held_out.sum())} images)",
            "--held-out",
            "leave the option out",
        )
    return Rows.of(source.labels, source.own_held_out)


def _begin(plan: Plan, journal: Journal) -> None:
    """Go on from the journal; where there is none, make files of the full size with nothing in them."""
    if journal.begun:
        journal.resume(plan.fingerprint())
        return
    need = len(plan.source) * int(np.prod(plan.shape))
    if need > shutil.disk_usage(plan.work).free:
        raise UserError(f"{need / 1e9:.1f} GB are needed, and are not free", str(plan.data.parent))
    for part, side in enumerate(plan.sides):
        npy.create(plan.data / side / IMAGES, (plan.rows.count(part), *plan.shape), np.uint8)
    if plan.digests is not None:
        with plan.digests.open("wb") as file:
            file.truncate(DIGEST * len(plan.source))
    journal.begin(plan.fingerprint())


def _run(plan: Plan, journal: Journal, options: Options, progress: Progress) -> None:
    """Do what the journal does not know as done."""
    pieces = plan.source.pieces()
    entries = [("piece", k) for k in range(len(pieces)) if k not in journal.done]
    entries += [("file", k) for k in range(len(plan.source.containers)) if k not in journal.hashes]
    tasks = _tasks(plan, entries)
    if options.strict:
        _stop_at_bad(plan.source, journal.bad)
    written: list[dict[str, Any]] = []
    since, count = time.monotonic(), 0
    for number, result in pool.run(tasks, options.workers):
        kind, k = entries[number]
        if kind == "piece":
            written.append({"piece": k, "bad": result})
            count += pieces[k][1] - pieces[k][0]
            if options.strict:
                _stop_at_bad(plan.source, dict(result))
        else:
            written.append({"file": k, "sha256": result})
        if time.monotonic() - since >= SYNC_SECONDS:
            _commit(plan, journal, written)
            progress.advanced(count)
            written, since, count = [], time.monotonic(), 0
    _commit(plan, journal, written)
    progress.advanced(count)


def _tasks(plan: Plan, entries: list[tuple[str, int]]) -> list[pool.Task]:
    source, rows, pieces = plan.source, plan.rows, plan.source.pieces()
    images = [str(plan.data / side / IMAGES) for side in plan.sides]
    digests = str(plan.digests) if plan.digests else None
    job = Job(source.reader(), plan.transform, plan.shape, (images[0], images[-1]), digests)

    def arguments(k: int) -> tuple[Any, ...]:
        first, last = pieces[k]
        return job, Piece(first, source.task(first, last), rows.side[first:last], rows.row[first:last])

    return [
        (convert, partial(arguments, k))
        if kind == "piece"
        else (files.file_digest, partial(lambda k: (str(source.containers[k]),), k))
        for kind, k in entries
    ]


def _commit(plan: Plan, journal: Journal, entries: list[dict[str, Any]]) -> None:
    """The data first, then the words that they are there."""
    for side in plan.sides:
        files.sync(plan.data / side / IMAGES)
    if plan.digests is not None:
        files.sync(plan.digests)
    if entries:
        journal.write(entries)


def _stop_at_bad(source: Source, bad: dict[int, str]) -> None:
    if bad:
        item = min(bad)
        raise UserError(f"{source.name(item)} {bad[item]}", str(source.path), "leave out --strict")
