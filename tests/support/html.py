"""A page as a browser would take it: its tags, attributes and words."""

from html.parser import HTMLParser

VOID = frozenset({"meta", "img", "path", "use", "br", "rect"})
"""Elements without an end tag; matplotlib closes its own at once."""


class ParsedPage(HTMLParser):
    """Tags, attributes and texts of a page. Raises AssertionError where the tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def values(self, tag: str, attribute: str) -> list[str]:
        """The values of one attribute of all elements of one kind."""
        return [value for t, name, value in self.attributes if (t, name) == (tag, attribute)]
