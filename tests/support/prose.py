"""Reading ease of the documentation: words a page, words a sentence, words a table cell.

    python -m tests.support.prose          a line for each page

Not counted: code, comments, and the measured tables between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WORD = re.compile(r"[^\W_]+(?:['’.,\-/][^\W_]+)*")
FENCE = re.compile(r"```.*?```", re.DOTALL)


@dataclass(frozen=True)
class Ease:
    """words: of the page. sentence: the mean words of one. cell: the words of the longest table cell."""

    words: int
    sentence: float
    cell: int


def text_of(page: str) -> str:
    """A page without what is not counted, links as their words."""
    page = re.sub(r"<!-- begin.*?<!-- end.*?-->", "", page, flags=re.DOTALL)
    page = FENCE.sub("", re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL))
    return re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", page)


def sentences(text: str) -> list[str]:
    """They end with . ! or ?, a paragraph, a list item or a heading. Tables have none."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith(("|", "#"))]
    parts = re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", "\n".join(lines))
    found = [sentence for part in parts for sentence in re.split(r"(?<=[.!?])\s+", " ".join(part.split()))]
    return [sentence for sentence in found if len(WORD.findall(sentence)) > 2]


def ease(page: str) -> Ease:
    text = text_of(page)
    lengths = [len(WORD.findall(sentence)) for sentence in sentences(text)]
    cells = [cell for line in text.splitlines() if line.startswith("|") for cell in line.split("|")]
    return Ease(
        len(WORD.findall(text)),
        mean(lengths) if lengths else 0.0,
        max((len(WORD.findall(cell)) for cell in cells), default=0),
    )


if __name__ == "__main__":
    for path in PAGES:
        found = ease(path.read_text(encoding="utf-8"))
        print(
            f"{path.relative_to(ROOT)!s:36} {found.words:5} words, {found.sentence:4.1f} a sentence, "
            f"{found.cell:3} in the longest cell"
        )
