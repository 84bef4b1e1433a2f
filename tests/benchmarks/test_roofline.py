"""benchmarks/roofline.py: the counted operations are those that a real step on the CPU performs."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from consistune.nn.presets import PRESETS, preset

TINY = {
    "kind": "song",
    "image_shape": (3, 16, 16),
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
}


@pytest.fixture
def roofline(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import roofline

    monkeypatch.setitem(
        PRESETS, "tiny", {"network": {**TINY, "attn_resolutions": ()}, "precond": {"kind": "edm"}}
    )
    return roofline


def test_the_operations_are_those_of_a_real_step(roofline) -> None:
    found = roofline.Step("tiny", 2, "fp32").count()
    model = preset("tiny").train()
    x, t = torch.randn(2, 3, 16, 16), torch.ones(2)
    with FlopCounterMode(display=False) as counter:
        ours = model(x, t)
        with torch.no_grad():
            target = model(x, t)
        (ours - target).square().sum().backward()
    scores = 2 * 2 * 64 * 64 * 32  # the one attention, at 8×8; its backward kernel computes them again
    assert found["FLOP"] == counter.get_total_flops() + scores
    assert found["parameters"] == sum(p.numel() for p in model.parameters())


def test_attention_is_one_kernel_that_counts_its_two_products_forward_and_five_backward(roofline) -> None:
    with torch.device("meta"), roofline.as_on_a_card(), roofline.Counted("bf16") as counted:
        q, k, v = (torch.empty(2, 3, 5, 7, requires_grad=True) for _ in range(3))
        counted.total.clear()
        out = roofline.layers.scaled_dot_product_attention(q, k, v)
    one_product = 2 * 2 * 3 * 5 * 5 * 7
    assert counted.total["FLOP"] == 2 * one_product
    assert counted.total["kernels"] == 1
    with torch.device("meta"), roofline.as_on_a_card(), roofline.Counted("bf16") as counted:
        out.sum().backward()
    assert counted.total["FLOP"] == 5 * one_product


def test_a_kernel_takes_the_longest_of_arithmetic_bytes_and_launch(roofline) -> None:
    def seconds(n: int, word: str, dtype: torch.dtype) -> float:
        with torch.device("meta"), roofline.Counted(word) as counted:
            a = torch.empty(n, n, dtype=dtype)
            counted.total.clear()
            a @ a
        return counted.total["seconds"]

    large = 8192
    for word, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        assert seconds(large, word, dtype) == pytest.approx(2 * large**3 / roofline.RATES[word])
    assert seconds(1, "bf16", torch.bfloat16) == roofline.LAUNCH_S
