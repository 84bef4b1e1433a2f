"""What a worker process does: read a piece of a source, transform it, write it at its rows. No torch here."""

import hashlib
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistune.data.prepare.npy import HEADER
from consistune.data.prepare.transform import BadImage, Transform
from consistune.data.sources.base import Raw, Reader

DIGEST = 32


@dataclass(frozen=True)
class Job:
    """What is the same for all pieces.

    Attributes:
        reader: of the source.
        transform: of each image.
        shape: (channels, height, width) of every result.
        files: the image files of the two sides.
        digests: where the SHA-256 of each encoded image goes; None where images are no files.
    """

    reader: Reader
    transform: Transform
    shape: tuple[int, int, int]
    files: tuple[str, str]
    digests: str | None


@dataclass(frozen=True)
class Piece:
    """Images first … of the source, with their sides and rows."""

    first: int
    task: Any
    side: NDArray[np.int8]
    row: NDArray[np.int64]


def convert(job: Job, piece: Piece) -> list[tuple[int, str]]:
    """Write a piece's images. Returns (image, reason) of the bad ones.

    Every image has its place: pieces can be done in any order, in many processes, and again.
    """
    bad: list[tuple[int, str]] = []
    size = int(np.prod(job.shape))
    descriptors = [os.open(path, os.O_WRONLY) for path in job.files]
    digests = bytearray()
    try:
        count = 0
        for count, raw in enumerate(job.reader(piece.task), 1):
            item = count - 1
            if job.digests is not None:
                digests += _digest(raw)
            try:
                pixels = job.transform.to_shape(raw, job.shape)
            except BadImage as error:
                bad.append((piece.first + item, str(error)))
                continue
            at = HEADER + int(piece.row[item]) * size
            os.pwrite(descriptors[piece.side[item]], np.ascontiguousarray(pixels).data, at)
        if count != len(piece.row):
            raise RuntimeError(f"{count} images were read where {len(piece.row)} were announced")
        if job.digests is not None:
            with open(job.digests, "r+b") as file:
                os.pwrite(file.fileno(), digests, piece.first * DIGEST)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return bad


def _digest(raw: Raw) -> bytes:
    return hashlib.sha256(raw).digest() if isinstance(raw, bytes) else bytes(DIGEST)


def start_worker() -> None:
    """Ctrl-C is the parent's to answer; where the parent is killed, the worker ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel
        threading.Thread(target=lambda: (connection.wait([sentinel]), os._exit(1)), daemon=True).start()
