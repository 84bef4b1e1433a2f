"""Which files this program made, and of which kind."""

from pathlib import Path

import numpy as np
import pytest

from consistune.errors import UserError
from consistune.system.own import MARK, check_file


def test_samples_and_moments_are_not_taken_for_each_other(tmp_path: Path) -> None:
    samples, moments = tmp_path / "samples.npz", tmp_path / "moments.npz"
    np.savez(samples, **{"arr_0": np.zeros(1), MARK: np.array("samples")})
    np.savez(moments, **{"mu": np.zeros(1), "sigma": np.eye(1), MARK: np.array("{}")})
    for path, keys, others in ((samples, ["arr_0"], ["mu", "sigma"]), (moments, ["mu", "sigma"], ["arr_0"])):
        check_file(path, "--out", keys)
        with pytest.raises(UserError, match="nothing in it says that this command wrote it"):
            check_file(path, "--out", others)
