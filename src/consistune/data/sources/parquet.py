"""Parquet shards as Hugging Face `datasets` writes them: a column of images {bytes, path}, one of labels.

Needs the extra `parquet` (pyarrow).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.arrays import check_labels
from consistune.data.sources.base import MAX_IMAGE_BYTES, Raw, Reader, Source, Unreadable
from consistune.errors import UserError

HELD_OUT_NAMES = ("test", "validation", "valid", "val")


@dataclass(frozen=True)
class Group:
    """A row group of a file, or a part of one."""

    file: str
    index: int
    rows: int


@dataclass(kw_only=True)
class ParquetRows(Source):
    """Images that are rows of parquet files; a piece is a row group."""

    column: str
    row_groups: list[Group]

    def __post_init__(self) -> None:
        self._edges = np.cumsum([0, *(group.rows for group in self.row_groups)])

    def pieces(self) -> list[tuple[int, int]]:
        return [(int(a), int(b)) for a, b in zip(self._edges, self._edges[1:], strict=False) if b > a]

    def _where(self, item: int) -> tuple[Group, int]:
        index = int(np.searchsorted(self._edges, item, side="right")) - 1
        return self.row_groups[index], item - int(self._edges[index])

    def name(self, item: int) -> str:
        group, row = self._where(item)
        return f"{Path(group.file).name}, row {row} of group {group.index}"

    def task(self, first: int, last: int) -> Any:
        group, row = self._where(first)
        return group.file, group.index, self.column, row, row + last - first

    def reader(self) -> Reader:
        return read_group


def read_group(task: tuple[str, int, str, int, int]) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    file, index, column, first, last = task
    with pq.ParquetFile(file, memory_map=True) as table:
        at = first
        for batch in table.iter_batches(batch_size=256, row_groups=[index], columns=[f"{column}.bytes"]):
            for value in batch.column(0).field("bytes"):
                data = value.as_py()
                if first <= at < last:
                    yield _checked(data)
                at += 1


def _checked(data: Any) -> Raw:
    if not isinstance(data, bytes):
        return Unreadable("has no bytes (a path alone is not followed)")
    return data if len(data) <= MAX_IMAGE_BYTES else Unreadable(f"has more than {MAX_IMAGE_BYTES} bytes")


def open_parquet(path: Path, label_column: str | None) -> ParquetRows:
    """A parquet file, or a folder of them; files named test-… or validation-… are the held-out set.

    The images are the one column that is a struct with `bytes`; the labels the column `label_column`, or the
    one integer column (or `label`, where there are several). Class names come from the files' own metadata.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(
            "reading parquet needs pyarrow", str(path), 'pip install "consistune[parquet]"'
        ) from error
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.parquet") if p.is_file())
    groups: list[Group] = []
    labels, held_out = [], []
    column, label, names = None, None, None
    for file in files:
        try:
            with pq.ParquetFile(file, memory_map=True) as table:
                schema = table.schema_arrow
                if column is None:
                    column, label = _columns(schema, label_column, str(file))
                    names = _class_names(schema, label)
                sizes = [table.metadata.row_group(k).num_rows for k in range(table.num_row_groups)]
                count = sum(sizes)
                values = table.read([label]).column(0).to_numpy() if label else np.zeros(count, np.int64)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"cannot be read as parquet ({str(error)[:100]!a})", str(file)) from error
        groups += [Group(str(file), k, rows) for k, rows in enumerate(sizes)]
        labels.append(check_labels(values, count, f"{file}, {label}"))
        held_out.append(np.full(count, file.name.split("-")[0].split(".")[0] in HELD_OUT_NAMES))
    if column is None:
        raise UserError("holds no parquet file", str(path))
    found, own = np.concatenate(labels), np.concatenate(held_out)
    known = int(found.max(initial=0)) + 1
    if names is not None and len(names) < known:
        raise UserError(f"a label is {known - 1}, of {len(names)} classes", str(path))
    return ParquetRows(
        kind="parquet shards",
        path=path,
        labels=found,
        class_names=names or (tuple(str(k) for k in range(known)) if label else ("all",)),
        labelled=label is not None,
        own_held_out=own if own.any() and not own.all() else None,
        containers=files,
        column=column,
        row_groups=groups,
    )


def _columns(schema: Any, wanted: str | None, where: str) -> tuple[str, str | None]:
    """The names of the columns of images and of labels."""
    import pyarrow.types as types

    images = [f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    numbers = [f.name for f in schema if types.is_integer(f.type)]
    if len(images) != 1:
        raise UserError(f"must have one column of images {{bytes, path}}, has {images}", where)
    if wanted is not None:
        if wanted not in numbers:
            raise UserError(f"has no column of integers {wanted!r}, but {numbers}", where)
        return images[0], wanted
    if len(numbers) > 1 and "label" not in numbers:
        raise UserError(f"which of {numbers} are the labels?", where, "say --labels COLUMN")
    return images[0], numbers[0] if len(numbers) == 1 else "label" if numbers else None


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """The ClassLabel's names in the `huggingface` metadata; None where there are none."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None
