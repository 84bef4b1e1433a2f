"""How long the attacks last: some seconds in the test suite, longer by hand.

    CONSISTUNE_ATTACK=60 CONSISTUNE_ATTACK_SEED=1 python -m pytest tests/attack -s        an hour each

A long attack also writes its record into benchmarks/results, from which benchmarks/tables.py fills the docs.
"""

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consistune.system.files import write_atomically

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.fixture
def minutes() -> float:
    """Minutes of an attack by hand; 0 in the test suite."""
    return float(os.environ.get("CONSISTUNE_ATTACK", "0"))


@pytest.fixture
def seed() -> int:
    """What the random choices of an attack begin from."""
    return int(os.environ.get("CONSISTUNE_ATTACK_SEED", "0"))


@pytest.fixture
def keep_record(minutes: float, seed: int) -> Callable[[str, dict[str, Any]], None]:
    """Write the record of a long attack; the suite's short one is not kept."""

    def keep(name: str, record: dict[str, Any]) -> None:
        if minutes:
            about = {"seed": seed, "minutes": minutes, "machine": platform.platform()}
            write_atomically(RESULTS / f"{name}.json", json.dumps({**about, **record}, indent=1) + "\n")

    return keep
