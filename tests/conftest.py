"""What the tests share."""

from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data that lie beside the repository: numbers of the published implementations."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the reference data (../shared) are not beside this checkout")
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors are faster, and sums reproducible, on one thread."""
    torch.set_num_threads(1)
