"""The plan of a preparation, and its end: rows of bad images closed up, labels and meta.json written."""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.prepare import npy
from consistune.data.prepare.journal import Journal
from consistune.data.prepare.split import Rows, Split
from consistune.data.prepare.transform import Transform
from consistune.data.prepare.work import DIGEST
from consistune.data.prepared import IMAGES, LABELS, META, SIDES, Meta, Part, write_meta
from consistune.data.sources.base import Source
from consistune.errors import UserError
from consistune.system import files


@dataclass(frozen=True)
class Plan:
    """What is known before the first image is converted.

    Attributes:
        shape: (channels, height, width) of every result.
        rows: where each image goes.
        data, work: the folders of the result and of what is needed on the way.
    """

    source: Source
    transform: Transform
    shape: tuple[int, int, int]
    rows: Rows
    split: Split
    data: Path
    work: Path

    @property
    def sides(self) -> tuple[str, ...]:
        """ "train", and "held-out" where images are held out."""
        return SIDES if self.rows.count(1) else SIDES[:1]

    @property
    def digests(self) -> Path | None:
        """Where the SHA-256 of image files are kept; None where images are no files."""
        return self.work / "digests" if self.source.items_are_files else None

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a run and the one that continues it; JSON as it comes back."""
        source = self.source
        digest = hashlib.sha256(source.labels.tobytes())
        for name, size in source.item_files():
            digest.update(f"{size} {name}\n".encode("utf-8", "surrogateescape"))
        stats = [path.stat() for path in source.containers]
        plan = {
            "source": str(source.path.resolve()),
            "kind": source.kind,
            "images": len(source),
            "index": digest.hexdigest(),
            "containers": [[stat.st_size, stat.st_mtime_ns] for stat in stats],
            "split": asdict(self.split),
            "transform": asdict(self.transform),
            "piece": source.piece,
        }
        return json.loads(json.dumps(plan))


def finish(plan: Plan, journal: Journal) -> Meta:
    """Everything but the images, which are there. Done again after a kill, it gives the same.

    Raises UserError where no image was good.
    """
    good = np.ones(len(plan.source), bool)
    good[list(journal.bad)] = False
    if not good.any():
        worst = min(journal.bad)
        what = f"no image could be used ({plan.source.name(worst)} {journal.bad[worst]})"
        raise UserError(what, str(plan.source.path))
    parts = {side: _finish_side(plan, part, side, good) for part, side in enumerate(plan.sides)}
    meta = _meta(plan, journal, parts)
    write_meta(plan.data / META, meta)
    return meta


def _finish_side(plan: Plan, part: int, side: str, good: np.ndarray[Any, Any]) -> Part:
    items = np.flatnonzero(plan.rows.side == part)
    items = items[np.argsort(plan.rows.row[items])]
    kept = good[items]
    labels = plan.source.labels[items][kept]
    folder = plan.data / side
    _close_up(folder / IMAGES, kept, plan.shape)
    (folder / LABELS).write_bytes(npy.header(labels.shape, np.int64) + labels.astype("<i8").tobytes())
    offsets = np.searchsorted(labels, np.arange(len(plan.source.class_names) + 1))
    for name in (IMAGES, LABELS):
        files.sync(folder / name)
    return Part(
        images=len(labels),
        offsets=tuple(int(k) for k in offsets),
        sha256={name: files.file_digest(folder / name) for name in (IMAGES, LABELS)},
    )


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
    files.sync(partial)
    partial.replace(path)


def _meta(plan: Plan, journal: Journal, parts: dict[str, Part]) -> Meta:
    source, split = plan.source, plan.split
    bad = [{"image": name, "reason": reason} for name, reason in source.skipped]
    bad += [{"image": source.name(k), "reason": journal.bad[k]} for k in sorted(journal.bad)]
    if source.own_held_out is not None:
        rule: Any = "the source's own test set"
    else:
        rule = asdict(split) if split.fraction else None
    return Meta(
        source={"path": str(source.path), "kind": source.kind, "sha256": _source_hash(plan, journal)},
        shape=plan.shape,
        transform=plan.transform.described(),
        class_names=source.class_names,
        labelled=source.labelled,
        held_out=rule,
        parts=parts,
        bad=bad,
        notes=source.notes,
    )


def _source_hash(plan: Plan, journal: Journal) -> str:
    """Of one file, its SHA-256. Of several, that of the sorted lines `sha256  bytes  relative name`."""
    source, hashes = plan.source, journal.hashes
    if len(source.containers) == 1 and plan.digests is None:
        return hashes[0]
    lines = [
        (os.path.relpath(path, source.path), path.stat().st_size, hashes[k])
        for k, path in enumerate(source.containers)
    ]
    lines += _item_lines(plan)
    digest = hashlib.sha256()
    for name, size, sha256 in sorted(lines):
        digest.update(f"{sha256}  {size}  {name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _item_lines(plan: Plan) -> Iterator[tuple[str, int, str]]:
    if plan.digests is not None:
        found = np.fromfile(plan.digests, np.uint8).reshape(-1, DIGEST)
        for row, (name, size) in zip(found, plan.source.item_files(), strict=True):
            yield name, size, row.tobytes().hex()
