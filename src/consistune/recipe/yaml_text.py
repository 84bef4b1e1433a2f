"""YAML as plain data: bounded in size, depth and expansion, and every mistake named with its line."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, cast

import yaml

from consistune.errors import UserError

LONGEST_FILE = 1 << 20
"""Bytes of a file."""
MOST_VALUES = 20_000
"""Keys and values, each alias counted as all that it stands for."""
DEEPEST = 40
"""Levels of lists and mappings."""
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
ENDS = (yaml.StreamEndToken, yaml.BlockEndToken)
"""Tokens that stand behind a comment."""
SHOWN = 60
"""Characters of a value in a message."""


def shortened(value: Any) -> str:
    """The value as Python writes it, cut to SHOWN characters."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (1e-4 is one; YAML 1.1 reads a string), plain values only, and no key twice."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        shown = str(node.value)[:SHOWN] if isinstance(node, yaml.ScalarNode) else node.tag.rpartition(":")[2]
        if node.tag not in TAGS:
            kind = node.tag.removeprefix("tag:yaml.org,2002:")
            raise _error(f"{shown!r} is a {kind}, which is no value here: write a number or a text", node)
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError, KeyError) as error:
            kind = node.tag.rpartition(":")[2]
            raise _error(f"{shown!r} is no {kind}", node) from error


INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {  # without YAML 1.1's integers, where 010 is 8 and 1:30 is 90
    first: [(tag, form) for tag, form in forms if tag != INT]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    INT, re.compile(r"^([-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def _error(what: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if not isinstance(key, Hashable):
            raise _error("a list or mapping is no key", key_node)
        if key in seen:
            raise _error(f"key {key!r} appears twice", node)
        seen.add(key)
    return cast(dict[str, Any], loader.construct_mapping(node, deep=True))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _check_size(text: str) -> None:
    """Raises MarkedYAMLError for text that would expand to too much, before anything is built."""
    total, anchors = 0, dict[str, int | None]()
    opened: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            size = anchors.get(name, 0)
            if size is None:
                raise _at(f"the alias *{name[:SHOWN]} stands inside itself", event)
            total += size
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                anchors[anchor] = total - before
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, total - 1))
                if event.anchor is not None:
                    anchors[event.anchor] = None
            elif event.anchor is not None:
                anchors[event.anchor] = 1
        if total > MOST_VALUES:
            raise _at(f"more than {MOST_VALUES:,} values, aliases counted as what they stand for", event)
        if len(opened) > DEEPEST:
            raise _at(f"more than {DEEPEST} levels of lists and mappings", event)


def _at(what: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, what, event.start_mark)  # type: ignore[arg-type]


def parse_yaml(text: str, where: str) -> Any:
    """Plain data from YAML: numbers, texts, booleans, null, lists, mappings.

    Raises UserError, with the line of a mistake, for anything else, and for text of more than MOST_VALUES
    values or DEEPEST levels.
    """
    try:
        _check_size(text)
        return yaml.load(text, _Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise UserError(what, f"{where}, line {line}", "write the file as text, in UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise UserError(f"not valid YAML: {getattr(error, 'problem', None) or error}", place) from error


def parse_value(text: str, key: str) -> Any:
    """As `parse_yaml`, for the one-line value of a key. Raises UserError too for a comment in it."""
    value = parse_yaml(text, key)
    tokens = (token for token in yaml.scan(text, yaml.SafeLoader) if not isinstance(token, ENDS))
    left = text[max(token.end_mark.index for token in tokens) :].strip()
    if left:
        raise UserError(f"{left!r} would be left out as a comment", key, f"write '{key}=\"{text}\"'")
    return value


def read_text(path: Path) -> str:
    """A UTF-8 file of at most LONGEST_FILE bytes. Raises UserError for another."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", str(path)) from error
    if len(data) > LONGEST_FILE:
        raise UserError(f"is longer than {LONGEST_FILE:,} bytes", str(path), "a recipe is a short text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"is not UTF-8: byte 0x{data[error.start]:02X}"
        raise UserError(what, f"{path}, line {line}", "store the file as text in UTF-8") from error
