"""Parquet shards as Hugging Face `datasets` writes them: a column of images {bytes, path}, one of labels.

Needs the extra `parquet` (pyarrow).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from consistune.data.sources.base import (
    HELD_OUT_NAMES,
    MAX_IMAGE_BYTES,
    TOO_LARGE,
    BlockSource,
    Raw,
    SourceOptions,
    Unreadable,
)
from consistune.data.sources.labels import UNLABELLED, check_labels, numbered_names
from consistune.errors import UserError


def read_group(task: tuple[str, int, str, int, int]) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    file, index, column, first, last = task
    with pq.ParquetFile(file, memory_map=True) as table:
        row = 0
        for batch in table.iter_batches(batch_size=256, row_groups=[index], columns=[f"{column}.bytes"]):
            for value in batch.column(0).field("bytes"):
                if first <= row < last:
                    yield _checked(value.as_py())
                row += 1


def _checked(data: Any) -> Raw:
    if not isinstance(data, bytes):
        return Unreadable("has no bytes (a path alone is not followed)")
    return data if len(data) <= MAX_IMAGE_BYTES else TOO_LARGE


@dataclass(kw_only=True)
class ParquetRows(BlockSource):
    """Images that are rows of parquet files. A block, and a piece, is a row group: (file, its number)."""

    read = staticmethod(read_group)
    column: str
    row_groups: list[tuple[str, int]]

    def pieces(self) -> list[tuple[int, int]]:
        return [(first, last) for first, last in pairwise(self._edges) if last > first]

    def name(self, item: int) -> str:
        block, row = self.locate(item)
        file, index = self.row_groups[block]
        return f"{Path(file).name}, row {row} of group {index}"

    def task(self, first: int, last: int) -> Any:
        block, row = self.locate(first)
        file, index = self.row_groups[block]
        return file, index, self.column, row, row + last - first


def open_parquet(path: Path, options: SourceOptions, _work: Path) -> ParquetRows:
    """A parquet file, or a folder of them; files named test-… or validation-… are the held-out set.

    The images are the one column that is a struct with `bytes`. The labels are the column `options.labels`,
    or the one integer column, or `label` where there are several. The files' metadata name the classes.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        remedy = 'pip install "consistune[parquet]"'
        raise UserError("reading parquet needs pyarrow", str(path), remedy) from error
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*.parquet") if p.is_file())
    groups, sizes, parts, held_out = [], [], [], []
    column, label, names = None, None, None
    for file in files:
        try:
            with pq.ParquetFile(file, memory_map=True) as table:
                if column is None:
                    column, label = _columns(table.schema_arrow, options.labels, str(file))
                    names = _class_names(table.schema_arrow, label)
                rows = [table.metadata.row_group(k).num_rows for k in range(table.num_row_groups)]
                count = sum(rows)
                values = table.read([label]).column(0).to_numpy() if label else np.zeros(count, np.int64)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(f"cannot be read as parquet ({str(error)[:100]!a})", str(file)) from error
        groups += [(str(file), k) for k in range(len(rows))]
        sizes += rows
        parts.append(check_labels(values, count, f"{file}, {label}"))
        held_out.append(np.full(count, file.name.split("-")[0].split(".")[0] in HELD_OUT_NAMES))
    if column is None:
        raise UserError("holds no parquet file", str(path))
    labels, own = np.concatenate(parts), np.concatenate(held_out)
    known = numbered_names(labels)
    if names is not None and len(names) < len(known):
        raise UserError(f"a label is {known[-1]}, of {len(names)} classes", str(path))
    return ParquetRows(
        kind="parquet shards",
        path=path,
        labels=labels,
        class_names=names or (known if label else UNLABELLED),
        labelled=label is not None,
        own_held_out=own if own.any() and not own.all() else None,
        containers=files,
        sizes=sizes,
        column=column,
        row_groups=groups,
    )


def _columns(schema: Any, label: str | None, where: str) -> tuple[str, str | None]:
    """The names of the columns of images and of labels; `label` is what the user asked for."""
    import pyarrow.types as types

    images = [f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    numbers = [f.name for f in schema if types.is_integer(f.type)]
    if len(images) != 1:
        raise UserError(f"must have one column of images {{bytes, path}}, has {images}", where)
    if label is not None:
        if label not in numbers:
            raise UserError(f"has no column of integers {label!r}, but {numbers}", where)
        return images[0], label
    if len(numbers) > 1 and "label" not in numbers:
        raise UserError(f"several columns may be the labels: {numbers}", where, "say --labels COLUMN")
    return images[0], numbers[0] if len(numbers) == 1 else "label" if numbers else None


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """The ClassLabel's names in the `huggingface` metadata; None where there are none."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(str(name) for name in names) if isinstance(names, list) else None
