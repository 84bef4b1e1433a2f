"""`sct data prepare`: any source → the one prepared format, streamed, over all cores, resumable.

What the result holds is a function of source and options alone: not of workers, pieces, or interruptions.
Labels are known first, so every image has its row before it is read. The work happens in DEST.part:
`data/` becomes DEST in the end, `work/` holds the journal and what had to be unpacked.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sct.data import npy, pool
from sct.data.journal import Journal
from sct.data.prepared import IMAGES, LABELS, META, SIDES, Meta, Part, write_meta
from sct.data.sources.base import Source
from sct.data.sources.detect import SourceOptions, open_source
from sct.data.split import Rows, Split, held_out
from sct.data.survey import Wanted, survey
from sct.data.transform import Transform
from sct.data.work import DIGEST, Job, Piece, convert, hash_file
from sct.errors import UserError

SYNC_SECONDS = 2.0
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
                raise UserError(f"{name} {reason}", str(path), "leave out --strict")
            transform, shape = survey(source, options.wanted)
            rows = _rows(source, options.split)
            preparation = _Preparation(source, transform, shape, rows, journal, data, work)
            preparation.begin(_fingerprint(source, options.split, transform))
        except BaseException:
            if not journal.begun:
                shutil.rmtree(part)
            raise
        pieces = source.pieces()
        progress.started(source, sum(b - a for k, (a, b) in enumerate(pieces) if k in journal.done))
        preparation.run(options, progress)
        meta = preparation.finish(options.split)
        data.rename(dest)
        _sync_folder(dest.parent)
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


def _fingerprint(source: Source, split: Split, transform: Transform) -> dict[str, Any]:
    """What must not change between a run and the one that continues it; JSON as it comes back."""
    digest = hashlib.sha256(source.labels.tobytes())
    for name, size in source.item_files() or ():
        digest.update(f"{size} {name}\n".encode("utf-8", "surrogateescape"))
    stats = [path.stat() for path in source.containers]
    plan = {
        "source": str(source.path.resolve()),
        "kind": source.kind,
        "images": len(source),
        "index": digest.hexdigest(),
        "containers": [[stat.st_size, stat.st_mtime_ns] for stat in stats],
        "split": asdict(split),
        "transform": asdict(transform),
        "piece": source.piece,
    }
    return json.loads(json.dumps(plan))


class _Preparation:
    def __init__(
        self,
        source: Source,
        transform: Transform,
        shape: tuple[int, int, int],
        rows: Rows,
        journal: Journal,
        data: Path,
        work: Path,
    ) -> None:
        self.source, self.transform, self.shape, self.rows = source, transform, shape, rows
        self.journal, self.data, self.work = journal, data, work
        self.sides = [side for part, side in enumerate(SIDES) if rows.count(part) or part == 0]
        self.files = tuple(str(data / side / IMAGES) for side in SIDES[: len(self.sides)])
        self.digests = work / "digests" if source.item_files() is not None else None

    def begin(self, plan: dict[str, Any]) -> None:
        """Go on from the journal; where there is none, make files of the full size with nothing in them."""
        if self.journal.begun:
            self.journal.resume(plan)
            return
        need = len(self.source) * int(np.prod(self.shape))
        if need > shutil.disk_usage(self.work).free:
            raise UserError(f"{need / 1e9:.1f} GB are needed, and are not free", str(self.data.parent))
        for part, side in enumerate(self.sides):
            npy.create(self.data / side / IMAGES, (self.rows.count(part), *self.shape), np.uint8)
        if self.digests is not None:
            with self.digests.open("wb") as file:
                file.truncate(DIGEST * len(self.source))
        self.journal.begin(plan)

    # --- the pieces ----------------------------------------------------------------------------------

    def run(self, options: Options, progress: Progress) -> None:
        """Do what the journal does not know as done."""
        pieces = self.source.pieces()
        job = Job(
            self.source.reader(),
            self.transform,
            self.shape,
            (self.files[0], self.files[-1]),
            str(self.digests) if self.digests else None,
        )
        entries: list[tuple[str, int]] = [
            ("piece", k) for k in range(len(pieces)) if k not in self.journal.done
        ]
        entries += [("file", k) for k in range(len(self.source.containers)) if k not in self.journal.hashes]
        tasks = [self._task(kind, k, job, pieces) for kind, k in entries]
        self._stop_at_bad(options, self.journal.bad)
        written: list[dict[str, Any]] = []
        since, count = time.monotonic(), 0
        for number, result in pool.run(tasks, options.workers):
            kind, k = entries[number]
            if kind == "piece":
                written.append({"piece": k, "bad": result})
                count += pieces[k][1] - pieces[k][0]
                self._stop_at_bad(options, dict(result))
            else:
                written.append({"file": k, "sha256": result})
            if time.monotonic() - since >= SYNC_SECONDS:
                self._commit(written)
                progress.advanced(count)
                written, since, count = [], time.monotonic(), 0
        self._commit(written)
        progress.advanced(count)

    def _task(
        self, kind: str, k: int, job: Job, pieces: list[tuple[int, int]]
    ) -> tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]:
        if kind == "file":
            return hash_file, lambda: (str(self.source.containers[k]),)
        first, last = pieces[k]

        def arguments() -> tuple[Any, ...]:
            task = self.source.task(first, last)
            return job, Piece(first, task, self.rows.side[first:last], self.rows.row[first:last])

        return convert, arguments

    def _commit(self, entries: list[dict[str, Any]]) -> None:
        """The data first, then the words that they are there."""
        for path in (*self.files, *([str(self.digests)] if self.digests else [])):
            _sync_file(path)
        if entries:
            self.journal.write(entries)

    def _stop_at_bad(self, options: Options, bad: dict[int, str]) -> None:
        if options.strict and bad:
            item = min(bad)
            raise UserError(
                f"{self.source.name(item)} {bad[item]}", str(self.source.path), "leave out --strict"
            )

    # --- the end -------------------------------------------------------------------------------------

    def finish(self, split: Split) -> Meta:
        """Rows of bad images closed up, labels, meta.json; everything on the disk."""
        good = np.ones(len(self.source), bool)
        good[list(self.journal.bad)] = False
        if not good.any():
            found = [f"{self.source.name(k)} {self.journal.bad[k]}" for k in sorted(self.journal.bad)[:1]]
            raise UserError(f"no image could be used ({''.join(found)})", str(self.source.path))
        parts = {}
        for part, side in enumerate(self.sides):
            items = np.flatnonzero(self.rows.side == part)
            items = items[np.argsort(self.rows.row[items])]
            kept = good[items]
            labels = self.source.labels[items][kept]
            folder = self.data / side
            _close_up(folder / IMAGES, kept, self.shape)
            npy.create(folder / LABELS, (len(labels),), np.int64)
            with (folder / LABELS).open("r+b") as file:
                file.seek(npy.HEADER)
                file.write(labels.astype("<i8").tobytes())
            offsets = np.searchsorted(labels, np.arange(len(self.source.class_names) + 1))
            for name in (IMAGES, LABELS):
                _sync_file(str(folder / name))
            parts[side] = Part(
                images=len(labels),
                offsets=tuple(int(k) for k in offsets),
                sha256={name: hash_file(str(folder / name)) for name in (IMAGES, LABELS)},
            )
        meta = self._meta(parts, split)
        write_meta(self.data / META, meta)
        return meta

    def _meta(self, parts: dict[str, Part], split: Split) -> Meta:
        source = self.source
        bad = [{"image": name, "reason": reason} for name, reason in source.skipped]
        bad += [{"image": source.name(k), "reason": self.journal.bad[k]} for k in sorted(self.journal.bad)]
        if source.own_held_out is not None:
            rule: Any = "the source's own test set"
        else:
            rule = asdict(split) if split.fraction else None
        return Meta(
            source={"path": str(source.path), "kind": source.kind, "sha256": self._source_hash()},
            shape=self.shape,
            transform=self.transform.described(),
            class_names=source.class_names,
            labelled=source.labelled,
            held_out=rule,
            parts=parts,
            bad=bad,
            notes=source.notes,
        )

    def _source_hash(self) -> str:
        """Of one file, its SHA-256. Of several, that of the sorted lines `sha256  bytes  relative name`."""
        containers, hashes = self.source.containers, self.journal.hashes
        if len(containers) == 1 and self.digests is None:
            return hashes[0]
        lines = [
            (os.path.relpath(path, self.source.path), path.stat().st_size, hashes[k])
            for k, path in enumerate(containers)
        ]
        lines += self._item_lines()
        digest = hashlib.sha256()
        for name, size, sha256 in sorted(lines):
            digest.update(f"{sha256}  {size}  {name}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _item_lines(self) -> Iterator[tuple[str, int, str]]:
        if self.digests is not None:
            found = np.fromfile(self.digests, np.uint8).reshape(-1, DIGEST)
            for row, (name, size) in zip(found, self.source.item_files() or (), strict=True):
                yield name, size, row.tobytes().hex()


def _close_up(path: Path, kept: np.ndarray[Any, Any], shape: tuple[int, int, int]) -> None:
    """Leave out the rows that are not `kept`. Done again after a kill, it does nothing."""
    count = int(kept.sum())
    if path.stat().st_size == npy.HEADER + count * int(np.prod(shape)):
        return
    images = npy.mapped(path, (len(kept), *shape), np.uint8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(npy.header((count, *shape), np.uint8))
        for first in range(0, len(kept), 1024):
            file.write(images[first : first + 1024][kept[first : first + 1024]].tobytes())
    _sync_file(str(partial))
    partial.replace(path)


def _sync_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
