"""What several rooms' tests share: the reference data, and settings under which a failure repeats."""

import os
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import typer.testing
from hypothesis import settings

from consistune.cli.main import app
from consistune.cli.numbers import check_all_numbers

# Timing says nothing on a shared machine; the same examples every time make a failure repeatable.
settings.register_profile("consistune", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("consistune")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]


PARITY = Path(os.environ.get("CONSISTUNE_PARITY") or REPOSITORY.parent / "shared" / "parity")
"""Numbers that the published implementations computed."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compare with the published implementations carry the marker `parity`."""
    for item in items:
        if {"parity", "parity_folder"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("parity")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of published specifications and small real data sets that lies beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the published specifications (../shared) are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    """The folder of parity fixtures: $CONSISTUNE_PARITY, or ../shared/parity."""
    if not PARITY.is_dir():
        pytest.skip(f"no parity fixtures in {PARITY}: set CONSISTUNE_PARITY")
    return PARITY


@pytest.fixture(scope="session")
def parity(parity_folder):
    """parity("ect/ect_imagenet_maps") → the fixture's arrays as tensors; words are lists."""

    def load(name: str) -> dict[str, Any]:
        with np.load(parity_folder / f"{name}.npz") as archive:
            arrays = {key: np.array(archive[key]) for key in archive}
        return {
            key: value if value.dtype.kind == "U" else torch.from_numpy(value)
            for key, value in arrays.items()
        }

    return load


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_cache_and_parser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What every command would make anew, made once: the classifier of the digits, and typer's parser.

    The cache is the tests' own, shared by all that run together: the user's is neither read nor written. The
    parser checks numbers, as that of the program does, for commands that do not go through `main` too.
    """
    folder = tmp_path_factory.getbasetemp()
    parser = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        together = "PYTEST_XDIST_WORKER" in os.environ
        patch.setenv("CONSISTUNE_CACHE", str((folder.parent if together else folder) / "cache"))
        patch.setattr(typer.main, "get_command", parser)
        patch.setattr(typer.testing, "_get_command", parser)
        check_all_numbers(parser(app))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors are faster, and sums reproducible, on one thread."""
    torch.set_num_threads(1)
