"""`consistune data prepare`: any source → the prepared format, streamed, over all cores, resumable.

The result depends on the source and the options alone, not on the number of workers, the pieces, or
interruptions. Labels are known first, so every image has its row before it is read. The work happens in
DEST.part: `data/` is renamed to DEST at the end, `work/` holds the journal and unpacked arrays.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.prepare import npy, pool
from consistune.data.prepare.accounts import check_allowed
from consistune.data.prepare.journal import LOCK, Journal
from consistune.data.prepare.preparation import Preparation, finish, remove_partials
from consistune.data.prepare.split import Rows, Split, held_out
from consistune.data.prepare.survey import ImageOptions, choose_transform
from consistune.data.prepare.work import DIGEST_BYTES, Converter, Piece
from consistune.data.prepared import IMAGES, SIDES, Meta, is_prepared, read_meta
from consistune.data.sources.base import Source, SourceOptions
from consistune.data.sources.detect import open_source
from consistune.errors import UserError, printable
from consistune.system import files

SYNC_SECONDS = 0.5
"""After a kill, at most the work of this time is done again."""


@dataclass(frozen=True)
class PrepareOptions:
    """How to prepare.

    Attributes:
        source: what the user says about the source.
        images: size, crop, filter, background, mode.
        split: how a source without a test set is divided.
        strict: stop at the first bad image.
        allow_missing: images that may be left out; None: any number.
        workers: processes; 1: this one.
    """

    source: SourceOptions = field(default_factory=SourceOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    split: Split = field(default_factory=Split)
    strict: bool = False
    allow_missing: int | None = None
    workers: int = 1


class Progress:
    """Is called as the preparation goes on. This base class does nothing."""

    def started(self, source: Source, done: int) -> None:
        """The source has been opened; an earlier run has converted `done` of its images."""

    def advanced(self, count: int) -> None:
        """`count` more images are converted and on the disk."""

    def warned(self, line: str) -> None:
        """The user should know this of the place where the work happens."""


SILENT = Progress()


def prepare(
    path: Path,
    dest: Path,
    options: PrepareOptions,
    progress: Progress = SILENT,
    check: Callable[[tuple[int, int, int]], object] = lambda _shape: None,
) -> Meta:
    """Prepare a source as the folder `dest`. `check` may refuse the images' shape before any is converted.

    Raises UserError for a source that cannot be read, options that do not fit it, a destination that exists,
    a source without a good image, with `strict` for the first bad image, and where more images would be left
    out than are allowed; then what is done is kept, and a run that allows more goes on from it.
    """
    part = dest.parent / f"{dest.name}.part"
    work, data = part / "work", part / "data"
    finished = is_prepared(dest) and (work / "journal").is_file() and not data.exists()
    check_dest(dest, finished)
    if is_prepared(path) and (path / SIDES[0] / IMAGES).is_file():
        raise UserError("is prepared already", str(path), "give its source, or add --latents")
    _check_unfinished(part)
    with Journal(work / "journal", progress.warned) as journal:
        try:
            if not journal.begun and (work / "unpacked").exists():  # of a killed run, perhaps of another file
                shutil.rmtree(work / "unpacked")
            source = open_source(path, options.source, work / "unpacked")
            if options.strict and source.skipped:
                name, reason = source.skipped[0]
                raise UserError(f"{printable(name)} {reason}", str(path), "leave out --strict")
            check_allowed(source, {}, options.allow_missing)
            transform, shape = choose_transform(source, options.images)
            check(shape)
            rows = _rows(source, options.split)
            preparation = Preparation(source, transform, shape, rows, options.split, data, work)
            if not finished:
                _begin(preparation, journal)
            elif not journal.is_of(preparation.fingerprint()):
                check_dest(dest)
        except BaseException:
            if not journal.begun:
                shutil.rmtree(part)
            raise
        if finished:
            meta = read_meta(dest)
        else:
            _fill(preparation, journal, options, progress)
            meta = finish(preparation, journal)
            remove_partials(data)
            data.rename(dest)
            files.sync(dest.parent)
        _remove(part)
    return meta


def check_dest(dest: Path, finished: bool = False) -> None:
    """Raises UserError where no folder `dest` can be made; `finished`: a killed run has made it already."""
    if os.path.lexists(dest) and not finished:
        raise UserError("is already there", str(dest), "remove it, or choose another")
    if dest.name == "..":
        raise UserError("is no name of a new folder", str(dest), "choose another")
    files.check_writable(dest, "DEST", folder=True)


def _fill(preparation: Preparation, journal: Journal, options: PrepareOptions, progress: Progress) -> None:
    done = sum(last - first for k, (first, last) in enumerate(preparation.pieces) if k in journal.done)
    progress.started(preparation.source, done)
    _convert(preparation, journal, options, progress)
    check_allowed(preparation.source, journal.bad, options.allow_missing)


def _remove(part: Path) -> None:
    """Remove what only the work needed. The journal is the last to go: by it a killed run is known."""
    for path in (part / "work").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("journal", LOCK):
            path.unlink()
    shutil.rmtree(part)


def _check_unfinished(part: Path) -> None:
    """Raises UserError where `part` is no unfinished preparation: all of it is removed at the end."""
    if not part.exists():
        return
    own = part.is_dir() and not part.is_symlink() and {p.name for p in part.iterdir()} <= {"work", "data"}
    work = part / "work"
    inside = {p.name for p in work.iterdir()} if work.is_dir() else set()
    bare = own and not (part / "data").exists() and inside <= {LOCK, "unpacked", "digests"}
    if not own or not (bare or (work / "journal").is_file()):  # bare: a kill came before the journal
        raise UserError(
            "is already there, and is no unfinished preparation",
            str(part),
            "the preparation needs this name: move it away, or choose another destination",
        )


def _rows(source: Source, split: Split) -> Rows:
    if source.own_held_out is None:
        return Rows.of(source.labels, held_out(source.labels, source.groups, split, source.class_names))
    if split.fraction:
        raise UserError(
            f"the source has a test set of its own ({int(source.own_held_out.sum())} images)",
            "--held-out",
            "leave the option out",
        )
    return Rows.of(source.labels, source.own_held_out)


def _begin(preparation: Preparation, journal: Journal) -> None:
    """Continue from the journal, or create the image files at their full size."""
    if journal.begun and preparation.data.exists():  # else the set was finished, and has been taken away
        journal.resume(preparation.fingerprint())
        return
    size = len(preparation.source) * int(np.prod(preparation.shape))
    files.check_room(preparation.data.parent, size)
    for side, name in enumerate(preparation.sides):
        shape = (preparation.rows.count(side), *preparation.shape)
        npy.create(preparation.data / name / IMAGES, shape, np.uint8)
    if preparation.digests is not None:
        with preparation.digests.open("wb") as file:
            file.truncate(DIGEST_BYTES * len(preparation.source))
    journal.begin(preparation.fingerprint())


def _convert(preparation: Preparation, journal: Journal, options: PrepareOptions, progress: Progress) -> None:
    """Do every task that the journal does not list as done."""
    entries: list[dict[str, Any]] = []
    last_sync, count = time.monotonic(), 0
    if options.strict:
        _stop_at_bad(preparation.source, journal.bad)
    for (kind, k), result in pool.run(_tasks(preparation, journal), options.workers):
        if kind == "piece":
            bad, animated = result
            entries.append({"piece": k, "bad": bad, "animated": animated})
            first, last = preparation.pieces[k]
            count += last - first
            if options.strict:
                _stop_at_bad(preparation.source, dict(bad))
        else:
            entries.append({"file": k, "sha256": result})
        if time.monotonic() - last_sync >= SYNC_SECONDS:
            _commit(preparation, journal, entries)
            progress.advanced(count)
            entries, last_sync, count = [], time.monotonic(), 0
    _commit(preparation, journal, entries)
    progress.advanced(count)


def _tasks(preparation: Preparation, journal: Journal) -> Iterator[pool.Task[tuple[str, int]]]:
    """Pieces to convert, then files to hash."""
    source, rows = preparation.source, preparation.rows
    images = [str(preparation.data / name / IMAGES) for name in preparation.sides]
    digests = str(preparation.digests) if preparation.digests else None
    files_of_sides = images[0], images[-1]
    converter = Converter(source.read, preparation.transform, preparation.shape, files_of_sides, digests)
    done, hashed = set(journal.done), set(journal.hashes)
    for k, (first, last) in enumerate(preparation.pieces):
        if k not in done:
            task = source.task(first, last)
            yield ("piece", k), converter, Piece(first, task, rows.side[first:last], rows.row[first:last])
    for k, path in enumerate(source.containers):
        if k not in hashed:
            yield ("file", k), files.file_digest, str(path)


def _commit(preparation: Preparation, journal: Journal, entries: list[dict[str, Any]]) -> None:
    """Sync the data, then write the journal's entries about them."""
    for name in preparation.sides:
        files.sync(preparation.data / name / IMAGES)
    if preparation.digests is not None:
        files.sync(preparation.digests)
    if entries:
        journal.write(entries)


def _stop_at_bad(source: Source, bad: dict[int, str]) -> None:
    if bad:
        item = min(bad)
        raise UserError(f"{source.name(item)} {bad[item]}", str(source.path), "leave out --strict")
