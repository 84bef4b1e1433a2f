"""The plain step computes what the step that is measured against it computes."""

import pytest
import torch

from consistune.bench.plain import PlainLoop, losses
from consistune.bench.training import compare
from consistune.bench.workload import StepInputs, redraw_weights
from consistune.core.types import Times
from consistune.nn import store

SONG = {
    "kind": "song",
    "image_shape": (3, 8, 8),
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 2,
    "attn_resolutions": (4,),
    "dropout": 0.0,
}
EDM2 = {
    "kind": "edm2",
    "image_shape": (3, 8, 8),
    "num_classes": 5,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
    "channels_per_head": 16,
}


def build(network):
    model = store.build({"network": network, "precond": {"kind": "edm"}})
    redraw_weights(model, 0)
    return model.train()


@pytest.mark.parametrize("network", [SONG, EDM2], ids=lambda n: n["kind"])
def test_losses_and_gradients_are_those_of_the_parts(network) -> None:
    model = build(network)
    errors = compare(model, StepInputs.of(model, 4))
    assert errors.loss < 1e-5
    assert errors.gradient < 1e-4
    model.precision = "bf16"
    rounded = compare(model, StepInputs.of(model, 4))
    assert errors.gradient < rounded.gradient < 0.1


def test_a_wrong_step_is_noticed() -> None:
    """The comparison compares: with dropout in one of the two it finds a difference."""
    model = build({**SONG, "dropout": 0.5})
    assert compare(model, StepInputs.of(model, 4)).gradient > 0.1


def test_the_plain_loop_learns() -> None:
    model = build(SONG)
    loop = PlainLoop(model, lr=1e-3, decay=0.5)
    draw = StepInputs.of(model, 4)
    with torch.no_grad():
        before = losses(model, draw.x_0, draw.times, draw.noise, None).mean()
    for _ in range(12):
        loop.step(draw)
    with torch.no_grad():
        after = losses(model, draw.x_0, draw.times, draw.noise, None).mean()
        average = losses(loop.average, draw.x_0, draw.times, draw.noise, None).mean()
    assert after < before
    assert not torch.equal(average, after)


def test_the_plain_target_is_the_model_at_r() -> None:
    """As r comes near t the two passes agree: the loss tends to a slope, not to infinity."""
    model = build(SONG)
    draw = StepInputs.of(model, 4)
    near = Times(draw.times.t, draw.times.t * (1 - 1e-3), draw.times.s)
    nearer = Times(draw.times.t, draw.times.t * (1 - 5e-4), draw.times.s)
    with torch.no_grad():
        a, b = (losses(model, draw.x_0, times, draw.noise, None) for times in (near, nearer))
    torch.testing.assert_close(a, b, rtol=0.1, atol=0)
