"""torch's zip archives, read in place: a record is not compressed, so it is a view of the file.

The reader accepts only what torch writes: no compression (so nothing can expand), no encryption, a directory
of limited size, every record inside the file and with the right checksum. Format: PKWARE's APPNOTE 6.3, §4.3.
"""

import zlib

from consistune.errors import UserError
from consistune.system import zipped

MAX_RECORDS = 20_000


class Archive:
    """The records of a torch archive by name, without the folder that torch puts them in."""

    def __init__(self, data: memoryview, where: str) -> None:
        """Read the directory. Raises UserError for anything that torch would not have written."""
        self.data, self.where = data, where
        self._checked: set[str] = set()
        try:
            self.records = self._directory()
        except UnicodeDecodeError as error:
            raise UserError("not a torch archive: its directory is malformed", where) from error
        except ValueError as error:
            raise UserError(f"not a torch archive: {error}", where) from error

    def _directory(self) -> dict[str, zipped.Entry]:
        start, size, count = zipped.directory(self.data)
        if count > MAX_RECORDS:
            raise ValueError(f"{count} records in {size} bytes at {start}")
        records: dict[str, zipped.Entry] = {}
        left = len(self.data)
        for entry in zipped.entries(self.data, start, size, count):
            folder, _, key = entry.name.partition("/")
            if entry.method != zipped.STORED or entry.packed != entry.plain or entry.flags & zipped.ENCRYPTED:
                raise ValueError(f"record {entry.name[:80]!a} is compressed or encrypted")
            if not folder or not key:
                raise ValueError(f"record {entry.name[:80]!a} lies in no folder")
            if key in records:
                raise ValueError(f"record {entry.name[:80]!a} appears twice")
            records[key] = entry
            left -= entry.plain
            if left < 0:  # bytes under many names: each name would cost a checksum over them
                raise ValueError("its records overlap")
        return records

    def read(self, key: str, where: str) -> memoryview:
        """A record's bytes, in place. Raises UserError where it is missing, cut off or damaged."""
        record = self.records.get(key)
        if record is None:
            raise UserError(f"record {key[:80]!a} is missing from the archive", where)
        local = bytes(self.data[record.header : record.header + 30])
        try:
            start = zipped.content_start(record.header, local)
        except ValueError as error:
            raise UserError(f"record {key[:80]!a} {error}", where) from error
        data = self.data[start : start + record.plain]
        if len(data) != record.plain:
            raise UserError(f"record {key[:80]!a} is cut off", where)
        if key not in self._checked and zlib.crc32(data) != record.crc:
            raise UserError(f"record {key[:80]!a} is damaged: its checksum differs", where)
        self._checked.add(key)
        return data
