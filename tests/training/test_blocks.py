"""Blocks are compiled one by one, each as one graph, and sharded around that."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from consistune.core.noise import EDM
from consistune.nn.lean import Dropout
from consistune.system.processes import Processes
from consistune.training import sharding
from consistune.training.loop import StepLoss
from consistune.training.precision import Precision
from consistune.training.prepare import compile_blocks
from tests.card.runs import DERIVATIVES, SHAPE, model


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Processes]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/a", rank=0, world_size=1)
    try:
        yield Processes(torch.device("cpu"), 0, 1)
    finally:
        torch.distributed.destroy_process_group()


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["patch-unet", *(pytest.param(kind, marks=SLOW) for kind in ("song", "adm", "edm2"))]
)
def test_a_sharded_block_is_one_graph_a_pass_and_its_hooks_stay_outside(
    kind: str, alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: compiled(function, backend="eager", fullgraph=True)
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = model(kind).train()
    names = network.state_dict().keys()
    compile_blocks(network.network)
    if sharding.possible():
        sharding.shard(network, alone)
    sharding.force_weight_norms(network)
    x, t = torch.randn(2, *SHAPE), torch.ones(2)
    network(x, t).sum().backward()
    with torch.no_grad():
        network(x, t)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2 * len(sharding.blocks(network.network))
    assert network.state_dict().keys() == names


@pytest.mark.skipif(not sharding.possible(), reason="FSDP2 of this PyTorch cannot leave scalars whole")
def test_a_sharded_model_gets_images_channels_last_and_keeps_its_weights(alone: Processes) -> None:
    network = model("song", dropout=0.0).train()
    x, t = torch.randn(2, *SHAPE), torch.ones(2)
    expected = network(x, t)
    sharding.shard(network, alone)
    formats: list[bool] = []
    block = next(iter(network.network.dec.children()))  # type: ignore[union-attr]
    block.register_forward_pre_hook(
        lambda _, given: formats.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    step = StepLoss(network, Precision("fp32", network, alone.device), EDM(), channels_last=True)
    torch.testing.assert_close(step._denoiser(network)(x, t), expected, rtol=1e-4, atol=1e-5)
    assert formats == [True]


@pytest.mark.parametrize("network", ["mlp", *(pytest.param(kind, marks=SLOW) for kind in ("song", "edm2"))])
@pytest.mark.parametrize("objective", ["continuous", "improved mean velocity"])
def test_a_compiled_step_with_a_derivative_is_the_eager_step(objective: str, network: str) -> None:
    """The derivative's pass stays eager, and drops out what the compiled pass does."""
    torch._dynamo.reset()
    compiled = DERIVATIVES[objective](network, compile=True, device="cpu")
    eager = DERIVATIVES[objective](network, compile=False, device="cpu")
    with torch.no_grad():
        for weight in compiled.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    eager.model.load_state_dict(compiled.model.state_dict())
    for module in eager.model.modules():
        if isinstance(module, Dropout):
            module.compiled = True  # Bernoulli numbers, as in a compiled pass
    for ours, plain in zip(*(islice(trainer.steps(), 2) for trainer in (compiled, eager)), strict=True):
        assert ours.loss == pytest.approx(plain.loss, rel=1e-4)
        assert ours.gradient_norm == pytest.approx(plain.gradient_norm, rel=1e-3)
