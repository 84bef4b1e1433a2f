"""What several rooms' tests share: the reference data, and settings under which a failure repeats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# Timing says nothing on a shared machine; the same examples every time make a failure repeatable.
settings.register_profile("consistune", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("consistune")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data that lie beside the repository: numbers of the published implementations."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (../shared) are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def parity(shared):
    """parity("ect/ect_imagenet_maps") → the fixture's arrays as tensors, in their own precision."""

    def load(name: str) -> dict[str, torch.Tensor]:
        with np.load(shared / "parity" / f"{name}.npz") as archive:
            return {key: torch.from_numpy(np.array(archive[key])) for key in archive}

    return load


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors are faster, and sums reproducible, on one thread."""
    torch.set_num_threads(1)
