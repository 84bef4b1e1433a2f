"""Standard output and error, which never end the work."""

import errno
import os
import sys
from io import TextIOWrapper
from typing import TextIO

STANDARD_ERROR = 2
GONE = (errno.EPIPE, errno.EIO)
"""A pipe without a reader, and a terminal that is closed."""


class Lasting(TextIOWrapper):
    """A stream whose reader may leave: what nobody reads is dropped, and the program goes on.

    Of standard error, whatever cannot be written is dropped; of standard output, a full disk is an error.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in GONE and self.fileno() != STANDARD_ERROR:
            raise error
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), self.fileno())


def lasting(stream: TextIO) -> TextIO:
    """The program's own stream as a `Lasting` one, with escapes where it has no UTF-8; another as it is."""
    if not isinstance(stream, TextIOWrapper) or stream not in (sys.__stdout__, sys.__stderr__):
        return stream
    return Lasting(
        stream.buffer,
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
