"""The prediction's arithmetic, on steps that are lines and on cases known in closed form."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from step_model import MeasuredStep, StepModel, state_bytes

STEPS = [MeasuredStep(b, 0.5 + 0.25 * b, 1000 + 100 * b) for b in (2, 4, 8)]
MODEL = StepModel.fitted(10, STEPS)


def test_a_line_is_found_again_at_batches_that_were_not_measured() -> None:
    assert MODEL.seconds(32) == pytest.approx(0.5 + 0.25 * 32)
    assert MODEL.bytes(32) == pytest.approx(1000 + 100 * 32)
    assert MODEL.largest_batch(5050) == 40
    assert MODEL.largest_batch(500) == 0


def test_devices_share_the_images_and_pay_for_the_gradients() -> None:
    # 2·(4 − 1)/4·4·10 = 60 bytes over each link.
    assert MODEL.seconds(8, 4, link=30.0) == pytest.approx(0.5 + 0.25 * 2 + 2.0)
    assert MODEL.efficiency(8, 1, link=1.0) == pytest.approx(1.0)
    assert MODEL.efficiency(10**9 * 4, 4, link=30.0) == pytest.approx(1.0, rel=1e-6)


def test_state_is_twenty_bytes_a_parameter_and_is_split() -> None:
    assert state_bytes(10) == 200
    assert state_bytes(10, averages=2, devices=4) == 60


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match="two batch sizes"):
        StepModel.fitted(10, STEPS[:1])
    with pytest.raises(ValueError, match="do not divide"):
        MODEL.seconds(9, 4)
