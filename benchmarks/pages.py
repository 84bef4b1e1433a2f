"""Measured tables in pages of the docs: each stands between two comments and is replaced whole."""

from pathlib import Path

from consistune.system.files import write_atomically

DOCS = Path(__file__).resolve().parents[1] / "docs"


def fill(page: str, name: str, text: str) -> None:
    """Put `text` between `<!-- begin NAME -->` and `<!-- end NAME -->` of docs/PAGE.

    Raises ValueError where the page has no such place.
    """
    path = DOCS / page
    before, begin, rest = path.read_text(encoding="utf-8").partition(f"<!-- begin {name} -->\n")
    _, end, after = rest.partition(f"<!-- end {name} -->")
    if not begin or not end:
        raise ValueError(f"{path} has no place for {name}")
    write_atomically(path, before + begin + text.rstrip("\n") + "\n" + end + after)
