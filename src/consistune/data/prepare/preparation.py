"""A preparation: what is known before the first image is converted, and what is done after the last.

At the end the rows of bad images are removed, and labels and meta.json are written.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.prepare import npy
from consistune.data.prepare.accounts import make_accounts
from consistune.data.prepare.journal import Journal
from consistune.data.prepare.split import Rows, Split
from consistune.data.prepare.transform import Transform
from consistune.data.prepare.work import DIGEST_BYTES
from consistune.data.prepared import IMAGES, LABELS, META, SIDES, Meta, Part, write_meta
from consistune.data.sources.base import Source
from consistune.data.sources.labels import brief
from consistune.errors import UserError
from consistune.system import files


@dataclass(frozen=True)
class Preparation:
    """A source, how its images are converted, and where they go.

    Attributes:
        shape: (channels, height, width) of every result.
        rows: each image's side and row.
        data, work: the folder of the result, and the folder of what is needed only until the end.
    """

    source: Source
    transform: Transform
    shape: tuple[int, int, int]
    rows: Rows
    split: Split
    data: Path
    work: Path

    @cached_property
    def pieces(self) -> list[tuple[int, int]]:
        return self.source.pieces()

    @property
    def sides(self) -> tuple[str, ...]:
        """ "train", and "held-out" where images are held out."""
        return SIDES if self.rows.count(1) else SIDES[:1]

    @property
    def digests(self) -> Path | None:
        """The file of the images' SHA-256; None where images are no files."""
        return self.work / "digests" if self.source.items_are_files else None

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same in a run that continues another; a value that JSON returns unchanged."""
        source = self.source
        digest = hashlib.sha256(source.labels.tobytes())
        for (name, size), changed in zip(source.item_files(), source.item_times(), strict=True):
            digest.update(f"{size} {changed} {name}\n".encode("utf-8", "surrogateescape"))
        stats = [path.stat() for path in source.containers]
        fingerprint = {
            "source": str(source.path.resolve()),
            "kind": source.kind,
            "images": len(source),
            "index": digest.hexdigest(),
            "containers": [[stat.st_size, stat.st_mtime_ns] for stat in stats],
            "split": asdict(self.split),
            "transform": asdict(self.transform),
            "piece": source.piece,
        }
        return json.loads(json.dumps(fingerprint))


def finish(preparation: Preparation, journal: Journal) -> Meta:
    """Everything after the conversion. Done again after a kill, it gives the same result.

    Raises UserError where no image was good.
    """
    source = preparation.source
    good = np.ones(len(source), bool)
    good[list(journal.bad)] = False
    if not good.any():
        first = min(journal.bad)
        what = f"no image could be used ({source.name(first)} {journal.bad[first]})"
        raise UserError(what, str(source.path))
    parts = {name: _finish_side(preparation, k, name, good) for k, name in enumerate(preparation.sides)}
    meta = _meta(preparation, journal, parts)
    write_meta(preparation.data / META, meta)
    return meta


def _finish_side(preparation: Preparation, side: int, name: str, good: np.ndarray[Any, Any]) -> Part:
    source, rows = preparation.source, preparation.rows
    items = np.flatnonzero(rows.side == side)
    items = items[np.argsort(rows.row[items])]
    kept = good[items]
    labels = source.labels[items][kept]
    images, label_file = (preparation.data / name / file for file in (IMAGES, LABELS))
    _remove_rows(images, kept, preparation.shape)
    npy.write(label_file, labels.astype("<i8"))
    for path in (images, label_file):
        files.sync(path)
    offsets = np.searchsorted(labels, np.arange(len(source.class_names) + 1))
    return Part(
        images=len(labels),
        offsets=tuple(int(k) for k in offsets),
        sha256={path.name: files.file_digest(path) for path in (images, label_file)},
    )


def _remove_rows(path: Path, kept: np.ndarray[Any, Any], shape: tuple[int, int, int]) -> None:
    """Remove the rows that are not `kept`. Done again after a kill, it changes nothing."""
    result = (int(kept.sum()), *shape)
    if path.stat().st_size == npy.file_size(result, np.uint8):
        return
    files.check_room(path.parent, npy.file_size(result, np.uint8))
    images = npy.open_mapped(path, (len(kept), *shape), np.uint8)
    partial = path.with_name(path.name + ".partial")  # one name: after a kill the next run overwrites it
    try:
        with partial.open("wb") as file:
            file.write(npy.header(result, np.uint8))
            for first in range(0, len(kept), 1024):
                file.write(images[first : first + 1024][kept[first : first + 1024]].tobytes())
        files.sync(partial)
        partial.replace(path)
    except OSError as error:  # a full disk names no file
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(partial)) from error


def remove_partials(folder: Path, *names: str) -> None:
    """Remove what killed runs left half-written in a set: meta.json, labels, and files of these names."""
    for place in (folder, *(folder / side for side in SIDES)):
        files.remove_partial(place, (META, LABELS, *names))


def _meta(preparation: Preparation, journal: Journal, parts: dict[str, Part]) -> Meta:
    source, split = preparation.source, preparation.split
    bad = [{"image": name, "reason": reason} for name, reason in source.skipped]
    bad += [{"image": source.name(k), "reason": journal.bad[k]} for k in sorted(journal.bad)]
    rule: Any = asdict(split) if split.fraction else None
    sha256 = _source_hash(preparation, journal)
    return Meta(
        source={"path": str(source.path), "kind": source.kind, "sha256": sha256},
        shape=preparation.shape,
        transform=preparation.transform.described(),
        class_names=source.class_names,
        labelled=source.labelled,
        held_out="the source's own test set" if source.own_held_out is not None else rule,
        parts=parts,
        bad=bad,
        notes=[*source.notes, *_notes(source, journal, parts)],
        accounts=make_accounts(source, preparation.rows, journal.bad),
    )


def _notes(source: Source, journal: Journal, parts: dict[str, Part]) -> list[str]:
    """What was noticed while the images were read."""
    notes = []
    if journal.animated:
        have = "image has" if journal.animated == 1 else "images have"
        notes.append(f"{journal.animated:,} {have} several frames; the first was taken")
    sizes = np.diff(parts["train"].offsets)
    empty = [name for name, size in zip(source.class_names, sizes, strict=True) if not size]
    if empty:
        notes.append(f"classes without training images: {brief(empty)}")
    return notes


def _source_hash(preparation: Preparation, journal: Journal) -> str:
    """Of one file, its SHA-256. Of several, that of the sorted lines `sha256  bytes  relative name`."""
    source, hashes = preparation.source, journal.hashes
    if len(source.containers) == 1 and preparation.digests is None:
        return hashes[0]
    lines = [
        (os.path.relpath(path, source.path), path.stat().st_size, hashes[k])
        for k, path in enumerate(source.containers)
    ]
    if preparation.digests is not None:
        digests = np.fromfile(preparation.digests, np.uint8).reshape(-1, DIGEST_BYTES)
        for digest, (name, size) in zip(digests, source.item_files(), strict=True):
            lines.append((name, size, digest.tobytes().hex()))
    total = hashlib.sha256()
    for name, size, sha256 in sorted(lines):
        total.update(f"{sha256}  {size}  {name}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()
