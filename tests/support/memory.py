"""The memory that Python takes in a block of a test."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(mib: int) -> Iterator[None]:
    """Assert that the block holds fewer than so many MiB at a time, beyond what was there before it."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mib << 20
    finally:
        tracemalloc.stop()
