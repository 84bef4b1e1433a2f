"""Parquet shards as Hugging Face `datasets` writes them: a column of images {bytes, path}, one of labels.

Needs the extra `parquet` (pyarrow).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.base import (
    MAX_IMAGE_BYTES,
    TOO_LARGE,
    BlockSource,
    Passed,
    Raw,
    SourceOptions,
    Unreadable,
)
from consistune.data.sources.beside import is_junk, passed_over
from consistune.data.sources.columns import Columns, choose_columns
from consistune.data.sources.files import Listing
from consistune.data.sources.labels import UNLABELLED, Numbered, brief, number_labels
from consistune.data.sources.splits import split_of
from consistune.errors import UserError, printable

MIN_PIECE = 1024
"""Rows of a row group that are read together at least."""


def read_group(task: tuple[str, int, str, int, int]) -> Iterator[Raw]:
    """Rows first … last − 1 of a row group; `column` ends in ".bytes" where it is a struct.

    Where the file is damaged, the rows from there on are unreadable.
    """
    import pyarrow as pa

    _, _, _, first, last = task
    done, what = 0, "is missing in its row group"
    try:
        for raw in _rows(*task):
            yield raw
            done += 1
    except (pa.ArrowException, OSError, ValueError) as error:
        what = f"is in a damaged part of the file ({str(error)[:60]!a})"
    yield from repeat(Unreadable(what), last - first - done)


def _rows(file: str, index: int, column: str, first: int, last: int) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, memory_map=True) as table:
        row = 0
        for batch in table.iter_batches(batch_size=256, row_groups=[index], columns=[column]):
            if row >= last:
                return
            values = batch.column(0)
            if column.endswith(".bytes"):
                values = values.field("bytes")
            for value in values[max(0, first - row) : max(0, last - row)]:
                yield _checked(value.as_py())
            row += len(values)


def _checked(data: Any) -> Raw:
    if not isinstance(data, bytes):
        return Unreadable("has no bytes (a path alone is not followed)")
    return data if len(data) <= MAX_IMAGE_BYTES else TOO_LARGE


@dataclass(kw_only=True)
class ParquetRows(BlockSource):
    """Images that are rows of parquet files. A block is a row group: (file, its number)."""

    read = staticmethod(read_group)
    column: str
    row_groups: list[tuple[str, int]]

    def pieces(self) -> list[tuple[int, int]]:
        """A piece is a row group, or an eighth of a large one: to reach a row, those before it are read."""
        found: list[tuple[int, int]] = []
        for start, stop in pairwise(self._edges):
            size = max(MIN_PIECE, -(-(stop - start) // 8))
            found += [(first, min(first + size, stop)) for first in range(start, stop, size)]
        return found

    def name(self, item: int) -> str:
        block, row = self.locate(item)
        file, index = self.row_groups[block]
        return f"{Path(file).name}, row {row} of group {index}"

    def task(self, first: int, last: int) -> Any:
        block, row = self.locate(first)
        file, index = self.row_groups[block]
        return file, index, self.column, row, row + last - first

    def sample(self, items: list[int]) -> Iterator[Raw]:
        """These images, in ascending order; a row group is read once."""
        wanted = sorted(items)
        for start, stop in pairwise(self._edges):
            inside = [item for item in wanted if start <= item < stop]
            if inside:
                rows = self.read(self.task(inside[0], inside[-1] + 1))
                chosen = set(inside)
                yield from (raw for item, raw in enumerate(rows, inside[0]) if item in chosen)


@dataclass(frozen=True)
class _Shard:
    """A parquet file: its split, the rows of its groups, and its labels (None: the set has none)."""

    file: Path
    split: str
    groups: list[int]
    labels: list[Any] | None

    @property
    def unlabelled(self) -> bool:
        """No row has a label; the hub writes −1 for it."""
        return self.labels is not None and all(label is None or label == -1 for label in self.labels)


def open_parquet(path: Path, options: SourceOptions, _work: Path) -> ParquetRows:
    """A parquet file, or a folder of them; the held-out set is the validation split, or else test.

    The splits are those in the files' names, by the Hugging Face hub's rule. The images are the one column
    that is a struct with `bytes`, or of bytes. The labels are the column `options.labels`, or the column
    `label`, or the one that the metadata call a ClassLabel; no other column is taken for labels.
    Raises UserError for a folder that holds image files too, unless `options.format` says what is read.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        remedy = 'pip install "consistune[parquet]"'
        raise UserError("reading parquet needs pyarrow", str(path), remedy) from error
    files, hidden = ({path: "train"}, []) if path.is_file() else _splits(path)
    images = Listing.of(path).images if path.is_dir() and options.format is None else {}
    if images:
        what = f"holds both parquet files and {len(images):,} image files, such as {printable(min(images))}"
        raise UserError(what, str(path), "--format parquet or --format folder says which are read")
    columns: Columns | None = None
    shards: list[_Shard] = []
    for file, split in files.items():
        try:
            with pq.ParquetFile(file, memory_map=True) as table:
                found = choose_columns(table.schema_arrow, options.labels, str(file))
                columns = columns or found
                if (found.images, found.label, found.names) != (columns.images, columns.label, columns.names):
                    what = f"has other columns or class names than {shards[0].file.name}"
                    raise UserError(what, str(file), "prepare them one by one")
                rows = [table.metadata.row_group(k).num_rows for k in range(table.num_row_groups)]
                labels = table.read([found.label]).column(0).to_pylist() if found.label else None
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise UserError(f"cannot be read as parquet ({str(error)[:100]!a})", str(file)) from error
        shards.append(_Shard(file, split, rows, labels))
    if columns is None:
        raise UserError("holds no parquet file", str(path))
    source = _source(path, shards, columns)
    source.notes += passed_over(hidden)
    return source


def is_parquet(path: Path) -> bool:
    """Whether it is a parquet file, or a folder with one in it or in its folder `data`."""
    if path.is_dir():
        return any(_is_named(file) for folder in (path, path / "data") for file in folder.glob("*"))
    return _is_named(path)


def _is_named(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def _splits(path: Path) -> tuple[dict[Path, str], list[str]]:
    """file → split, of the parquet files below a folder, and the hidden ones, which are passed over.

    A single split is "train", whatever it is called.

    Raises UserError where only some files' names have a split, for files of more than one set, and where two
    splits are there but no training one.
    """
    splits: dict[Path, str | None] = {}
    sets: set[str] = set()
    hidden: list[str] = []
    for file in sorted(p for p in path.rglob("*") if _is_named(p) and p.is_file()):
        *folders, name = file.relative_to(path).parts
        if any(is_junk(part) for part in (*folders, name)):
            hidden.append("/".join((*folders, name)))
            continue
        known = [split for part in (name, *reversed(folders)) if (split := split_of(part)) is not None]
        splits[file] = known[0] if known else None
        sets.add("/".join(part for part in folders if split_of(part) is None))
    found = {split for split in splits.values() if split is not None}
    if len(sets) > 1:
        names = brief([name or "." for name in sorted(sets)])
        raise UserError(f"holds parquet files of several sets: {names}", str(path), "give one of the folders")
    unknown = next((file for file, split in splits.items() if split is None), None)
    if found and unknown is not None:
        what = f"is of no split, where others are of {brief(sorted(found))}"
        raise UserError(what, str(unknown), "name it train-…, or move it away")
    if len(found) > 1 and "train" not in found:
        raise UserError(f"holds no training files, only {brief(sorted(found))}", str(path))
    return {file: split if split and len(found) > 1 else "train" for file, split in splits.items()}, hidden


def _source(path: Path, shards: list[_Shard], columns: Columns) -> ParquetRows:
    """The training split, and the first labelled one of validation and test; the others are passed over."""
    held, passed = "", []
    for split in ("validation", "test"):
        of_split = [shard for shard in shards if shard.split == split]
        if not of_split:
            continue
        unlabelled = all(shard.unlabelled for shard in of_split)
        if held or unlabelled:
            reason = "has no labels" if unlabelled else f"{held} is the held-out set"
            passed.append(Passed(split, sum(sum(shard.groups) for shard in of_split), reason))
        else:
            held = split
    taken = [shard for shard in shards if shard.split in ("train", held)]
    sizes = [rows for shard in taken for rows in shard.groups]
    own = np.repeat([shard.split == held for shard in taken], [sum(shard.groups) for shard in taken])
    labels = Numbered(np.zeros(sum(sizes), np.int64), UNLABELLED)
    if columns.label is not None:
        for shard in taken:
            if None in (shard.labels or ()):
                what = f"row {(shard.labels or []).index(None)} has no label in {columns.label!r}"
                raise UserError(what, str(shard.file))
        values = [label for shard in taken for label in shard.labels or ()]
        labels = number_labels(values, columns.names and list(columns.names), f"{path}, {columns.label}")
    return ParquetRows(
        kind="parquet shards",
        path=path,
        labels=labels.values,
        class_names=labels.class_names,
        labelled=columns.label is not None,
        own_held_out=own if own.any() else None,
        containers=[shard.file for shard in taken],
        passed=passed,
        notes=[*columns.note, *labels.notes],
        sizes=sizes,
        column=columns.images,
        row_groups=[(str(shard.file), k) for shard in taken for k in range(len(shard.groups))],
    )
