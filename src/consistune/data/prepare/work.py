"""What a worker process does: read a piece of a source, transform it, write its rows. No torch here."""

import hashlib
import multiprocessing
import os
import signal
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.prepare.npy import HEADER_BYTES
from consistune.data.prepare.transform import BadImage, Transform, has_frames
from consistune.data.sources.base import Raw, Reader

DIGEST_BYTES = 32


@dataclass(frozen=True)
class Piece:
    """Images first … of the source: the reader's task, and each image's side (0 or 1) and row there."""

    first: int
    task: Any
    side: NDArray[np.int8]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Converter:
    """Converts pieces. A row's offset is known, so pieces can be done in any order, in parallel, and again.

    Attributes:
        read: the source's reader.
        transform: of each image.
        shape: (channels, height, width) of every result.
        files: the image files of the two sides.
        digests: the file for the SHA-256 of each encoded image; None where images are no files.
    """

    read: Reader
    transform: Transform
    shape: tuple[int, int, int]
    files: tuple[str, str]
    digests: str | None

    def __call__(self, piece: Piece) -> tuple[list[tuple[int, str]], int]:
        """Write a piece's images. Returns (image, reason) of bad ones, and how many have several frames."""
        bad: list[tuple[int, str]] = []
        animated = 0
        size = int(np.prod(self.shape))
        digests = bytearray()
        with ExitStack() as opened:
            files = [opened.enter_context(open(path, "r+b")) for path in self.files]
            count = 0
            for item, raw in enumerate(self.read(piece.task)):
                count += 1
                if self.digests is not None:
                    digests += _digest(raw)
                try:
                    pixels = self.transform.to_shape(raw, self.shape)
                except BadImage as error:
                    bad.append((piece.first + item, str(error)))
                    continue
                animated += has_frames(raw)
                offset = HEADER_BYTES + int(piece.row[item]) * size
                file = files[piece.side[item]]
                file.seek(offset)
                file.write(np.ascontiguousarray(pixels).data)
        if count != len(piece.row):
            raise RuntimeError(f"{count} images were read where {len(piece.row)} were announced")
        if self.digests is not None:
            with open(self.digests, "r+b") as file:
                file.seek(piece.first * DIGEST_BYTES)
                file.write(digests)
        return bad, animated


def _digest(raw: Raw) -> bytes:
    """The SHA-256 of an encoded image; zeros where there is none."""
    return hashlib.sha256(raw).digest() if isinstance(raw, bytes) else bytes(DIGEST_BYTES)


def start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (connection.wait([sentinel]), os._exit(1)), daemon=True).start()
