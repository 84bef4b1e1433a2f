"""Mutated sources of images: each is read, with its images taken or listed, or refused with one line."""

import json
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consistune.data.sources.base import SourceOptions
from consistune.data.sources.detect import open_source
from consistune.errors import UserError
from tests.data.test_archives import make_tar, web_shard
from tests.data.test_layouts import PNG, lay, packed, shard
from tests.support.makers import pixels

TARS, TABLES = ("tar", "tgz", "web.tar"), ("json", "csv")
FEW, SLOW, MEMORY_MIB = 400, 5.0, 512
FRAGMENTS = (bytes(8), b"\xff" * 4, b"77777777", b'"', b"null", b"-1", b"\xf0\x9f", b"/../", b"1e999")


def sources(root: Path) -> dict[str, bytes]:
    """A small source of each kind, by its name's ending."""
    images = pixels(4, 6, 6, 3)
    tree = {"train/a/1.png": PNG, "train/b/1.png": PNG, "val/a/2.png": PNG, "x" * 150 + "/1.png": PNG}
    np.savez_compressed(root / "a.npz", images=images, labels=np.array([0, 1, 1, 0]))
    found = {
        "tar": make_tar(root / "a.tar", tree),
        "tgz": make_tar(root / "a.tgz", tree, "w:gz"),
        "web.tar": web_shard(root / "w.tar", images, [1, 2, 3, 1]),
        "zip": packed(lay(root / "set", "cat/1.png", "dog/1.png", "notes")),
        "npz": root / "a.npz",
        "parquet": shard(root / "a.parquet", {"label": ["a", "b", "a"], "id": [1, 2, 3]}),
    }
    table = {"labels": [["a.png", 0], ["b.png", 1]], "class_names": ["x", "y"], "group": [1, 2]}
    tables = {"json": json.dumps(table).encode(), "csv": b"file,label\na.png,cat\nb.png,dog\n"}
    return {ending: path.read_bytes() for ending, path in found.items()} | tables


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to six changes: a byte, a bit, bytes removed or put in, the end cut off."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at, kind = chance.randrange(len(found)), chance.random()
        if kind < 0.4:
            found[at] = chance.randrange(256)
        elif kind < 0.6:
            found[at] ^= 1 << chance.randrange(8)
        elif kind < 0.75 and len(found) > 50:
            del found[at : at + chance.randint(1, 40)]
        elif kind < 0.9:
            found[at:at] = chance.choice(FRAGMENTS)
        else:
            del found[at + 1 :]
    return bytes(found)


@pytest.mark.attack
def test_no_mutated_source_is_an_internal_error(
    tmp_path: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    pytest.importorskip("pyarrow")
    originals, chance = sources(tmp_path), random.Random(seed)
    flat = lay(tmp_path / "flat", "a.png", "b.png")
    lines: list[str] = []
    began, slowest, outcomes = time.monotonic(), dict.fromkeys(originals, 0.0), Counter[str]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while outcomes.total() < FEW or time.monotonic() - began < 60 * minutes:
        ending = chance.choice(list(originals))
        path = tmp_path / f"mutant.{ending}"
        path.write_bytes(mutated(originals[ending], chance))
        shutil.rmtree(tmp_path / "work", ignore_errors=True)
        if ending in TABLES:
            target, options = flat, SourceOptions(labels=str(path))
        else:
            target, options = path, SourceOptions(format="tar" if ending in TARS else ending)
        start = time.process_time()
        try:
            source = open_source(target, options, tmp_path / "work")
            count = sum(1 for a, b in source.pieces() for _ in source.read(source.task(a, b)))
            assert count == len(source)
            outcomes[f"{ending} read"] += 1
        except UserError as error:
            lines.append(str(error))
            outcomes[f"{ending} refused"] += 1
        slowest[ending] = max(slowest[ending], round(time.process_time() - start, 3))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert max(slowest.values()) < SLOW
    assert grown < MEMORY_MIB
    assert all(line.isprintable() for line in lines)
    counts = dict(sorted(outcomes.items()))
    keep_record("attack_sources", {"outcomes": counts, "slowest_seconds": slowest, "memory_grew_mib": grown})
