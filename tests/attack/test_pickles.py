"""Mutated checkpoints against the loader: none may execute anything, take 5 s, or take 1 GB of memory."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKERS = 2
FEW, CHUNK = 60, 500
"""Files of a worker in the test suite, and by hand, where a new worker starts for every chunk."""


def start(shared: Path, seed: int, first: int, count: int) -> subprocess.Popen[str]:
    words = [str(word) for word in (shared, seed, first, count)]
    command = [sys.executable, "-m", "tests.attack.mutants", *words]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str], first: int, count: int) -> list[dict[str, Any]]:
    """A worker's results. The file at which it died is one of them; those after it are not read."""
    output, _ = process.communicate()
    results = [json.loads(line) for line in output.splitlines()]
    if len(results) < count:
        died = {"index": first + len(results), "outcome": f"died ({process.returncode})", "seen": []}
        results.append(died)
    return results


def read_all(shared: Path, seed: int, count: int, seconds: float) -> list[dict[str, Any]]:
    """Start workers of `count` files until the time is over; at least one round of them."""
    began, results, first = time.perf_counter(), list[dict[str, Any]](), 0
    while not first or time.perf_counter() - began < seconds:
        firsts = range(first, first + WORKERS * count, count)
        workers = [(start(shared, seed, index, count), index) for index in firsts]
        for process, index in workers:
            results += finished(process, index, count)
        first += WORKERS * count
    return results


@pytest.mark.attack
def test_no_mutated_checkpoint_does_harm(
    shared: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    began = time.perf_counter()
    results = read_all(shared, seed, CHUNK if minutes else FEW, 60 * minutes)
    harmful = [r for r in results if r["outcome"] not in ("loaded", "refused") or r["seen"]]
    outcomes = Counter(result["outcome"] for result in results)
    record = {
        "files": len(results),
        "outcomes": dict(outcomes.most_common()),
        "with_side_effects": sum(bool(r["seen"]) for r in results),
        "slowest_seconds": max(r.get("seconds", 0) for r in results),
        "peak_mib": max(r.get("peak_mib", 0) for r in results),
        "findings": harmful[:50],
        "seconds": time.perf_counter() - began,
    }
    keep_record("fuzz_pickles", record)
    print(json.dumps(record, indent=1))
    assert not harmful, harmful[:5]
    assert outcomes["refused"] > outcomes["loaded"] > 0
    assert record["peak_mib"] < 1024
