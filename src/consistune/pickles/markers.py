"""What a pickle's names and bytes become while it is read: markers that do nothing."""

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Global:
    """A name from the table of known globals, as a marker."""

    module: str
    name: str


@dataclass(slots=True, eq=False)
class Blob:
    """Bytes, or text too long to be data (embedded source): where they stand, unread."""

    start: int
    stop: int
    text: bool = False

    def __len__(self) -> int:
        return self.stop - self.start
