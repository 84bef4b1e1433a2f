"""Which columns of a parquet file are the images and the labels: by type, metadata and name."""

import json
from dataclasses import dataclass
from typing import Any

from consistune.data.sources.labels import brief
from consistune.errors import UserError, printable

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture")


@dataclass(frozen=True)
class Columns:
    """The columns that are read.

    Attributes:
        images: the column of encoded images; "NAME.bytes" where it is a struct.
        label: the column of labels; None where there is none.
        names: the classes' names in the metadata, in their order; None where there are none.
        others: the other columns that could hold labels.
        unused: all columns that are not read.
    """

    images: str
    label: str | None
    names: tuple[str, ...] | None
    others: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def note(self) -> list[str]:
        rest = [name for name in self.unused if self.label is not None or name not in self.others]
        unused = [f"columns that were not used: {brief(rest)}"] if rest else []
        if self.label is not None:
            return unused
        remedy = f"; --labels COLUMN takes one of: {brief(self.others)}" if self.others else ""
        return [f"no column is called label or is a ClassLabel, so there are no labels{remedy}", *unused]


def choose_columns(schema: Any, asked: str | None, where: str) -> Columns:
    """The columns of this schema; `asked` is the column of labels that the user names.

    Raises UserError where no column, or more than one, is that of the images or of the labels, and where
    the labels are neither numbers, nor words, nor booleans.
    """
    images = _images(schema, where)
    features = _features(schema)
    possible = tuple(f.name for f in schema if f.name != images.removesuffix(".bytes") and _is_label(f.type))
    classes = [name for name in schema.names if _names(features.get(name)) is not None]
    called = [name for name in schema.names if name.casefold() == "label"]
    chosen = [asked] if asked is not None else called if len(called) == 1 else classes or called
    if len(chosen) > 1:
        what = f"several columns may be the labels: {brief(chosen)}"
        raise UserError(what, where, "say --labels COLUMN")
    label = chosen[0] if chosen else None
    if label is not None and label not in possible:
        kind = schema.field(label).type if label in schema.names else "not there"
        remedy = f"--labels COLUMN names another: {brief(possible)}" if possible else "there is no other"
        raise UserError(f"the column of labels {printable(label)!r} is {kind}", where, remedy)
    names = None if label is None else _names(features.get(label))
    others = tuple(name for name in possible if name != label)
    unused = tuple(name for name in schema.names if name not in (images.removesuffix(".bytes"), label))
    return Columns(images, label, names, others, unused)


def _images(schema: Any, where: str) -> str:
    import pyarrow.types as types

    structs = [f.name for f in schema if types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    plain = [f.name for f in schema if types.is_binary(f.type) or types.is_large_binary(f.type)]
    found = structs or plain
    if len(found) > 1:
        found = [name for name in found if name.casefold() in IMAGE_NAMES]
    if len(found) != 1:
        what = f"must have one column of images {{bytes, path}}, has {brief(structs or plain) or 'none'}"
        raise UserError(what, where)
    return f"{found[0]}.bytes" if structs else found[0]


def _is_label(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _features(schema: Any) -> dict[str, Any]:
    """The features in the `huggingface` metadata; empty where there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _names(feature: Any) -> tuple[str, ...] | None:
    """A ClassLabel's names in the order of their numbers; None for another feature."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    return tuple(str(name) for name in names) if isinstance(names, list) else None
