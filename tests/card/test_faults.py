"""Faults of code for a card that no CPU shows: each was there once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed.distributed_c10d import BackendConfig

from consistune.bench.training import plain_step
from consistune.bench.workload import Workload
from consistune.core.estimators import OneSample
from consistune.errors import UserError
from consistune.metrics.accuracy import count_correct
from consistune.metrics.classifier import ImageClassifier
from consistune.nn.layers import GroupNorm
from consistune.system import processes
from consistune.training.options import TrainOptions
from consistune.training.prepare import refuse_without_effect
from consistune.training.sharding import blocks
from tests.card.pretended import Card
from tests.card.runs import NETWORKS, SHAPE, consistency, model, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_classifier_on_the_card_judges_images_of_the_host() -> None:
    images, labels = torch.randint(0, 256, (30, *SHAPE), dtype=torch.uint8), torch.arange(30) % 4
    classifier = ImageClassifier(SHAPE, 4).eval()
    here = count_correct(classifier, images, labels)
    assert count_correct(classifier.cuda(), images, labels) == here


def test_processes_on_cards_can_sum_what_lies_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: given.append(backend))
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    joined = processes.Processes.start(torch.device("cuda"))
    assert (joined.device, joined.count) == (torch.device("cuda", 0), 2)
    backends = BackendConfig(torch.distributed.Backend(given[0])).get_device_backend_map()
    assert (backends["cuda"], backends["cpu"]) == ("nccl", "gloo")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_group_norm_keeps_the_memory_format_its_value_and_its_gradient(dtype: torch.dtype) -> None:
    norm = GroupNorm(32, 1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, dy = (torch.randn(3, 32, 6, 6) * 3 + 1).to(dtype), torch.randn(3, 32, 6, 6).to(dtype)

    def passed(x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
        y = norm(x.requires_grad_())
        return [y.detach(), *torch.autograd.grad(y, (x, norm.weight, norm.bias), dy)]

    expected = passed(x.float(), dy.float())
    norm.cuda()
    last = {"memory_format": torch.channels_last}
    found = passed(x.cuda().to(**last), dy.cuda().to(**last))
    for value, wanted in zip(found, expected, strict=True):
        allowed = 2e-3 if dtype == torch.float16 else 1e-5
        torch.testing.assert_close(value.cpu().float(), wanted, rtol=allowed, atol=allowed)
    assert all(value.is_contiguous(**last) and value.dtype == dtype for value in found[:2])


@pytest.mark.parametrize("word", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["song", "adm", "edm2", "patch-unet"])
def test_attention_takes_a_fast_kernel(kind: str, word: str, card: Card) -> None:
    network = {"channels_per_head": 8} if kind == "edm2" else {}
    card.attention.clear()
    next(trainer(consistency(OneSample()), kind, precision=word, network=network).steps())
    slow = [what for what in card.attention if what.startswith("math")]
    assert not slow
    if kind in ("song", "edm2"):
        assert card.attention


def test_graphs_are_asked_of_every_block_and_freed_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def compiled(function: Callable[..., Any], dynamic: bool, options: dict[str, Any]) -> Callable[..., Any]:
        assert not dynamic
        assert options == {"fallback_random": True, "triton.cudagraphs": True}

        def run(*inputs: Any) -> Any:
            events.append("block")
            return function(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: events.append("step"))
    plain = trainer(consistency(OneSample()), "song", precision="bf16", microbatch=8, compile=False)
    graphed = trainer(consistency(OneSample()), "song", precision="bf16", microbatch=8, compile="graphs")
    graphed.model.load_state_dict(plain.model.state_dict())
    losses = [[report.loss for _, report in zip(range(2), t.steps(), strict=False)] for t in (plain, graphed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    passes = 2 * 2 * len(blocks(graphed.model.network))  # two parts of the batch, student and target
    assert events == 2 * ["step", *passes * ["block"]]


@pytest.mark.parametrize(
    ("options", "words"), [({"shard": True}, "another place"), ({"checkpointing": True}, "forward passes")]
)
def test_graphs_are_refused_where_a_step_cannot_be_replayed(options: dict[str, bool], words: str) -> None:
    settings = TrainOptions(images=64, compile="graphs", **options)
    with pytest.raises(UserError, match=words):
        refuse_without_effect(settings, model("song"), processes.Processes(torch.device("cuda"), 0, 2))


def test_channels_last_stays_through_the_norms(card: Card) -> None:
    card.kernels.clear()
    next(trainer(consistency(OneSample()), "song", channels_last=True).steps())
    assert card.kernels["native_group_norm"] == 0
    next(trainer(consistency(OneSample()), "song", channels_last=False).steps())
    assert card.kernels["native_group_norm"] > 0


def test_the_plain_loop_has_its_images_on_the_card_before_a_step(card: Card) -> None:
    config = {
        "network": {**NETWORKS["song"], "image_shape": SHAPE, "num_classes": 0, "dropout": 0.1},
        "precond": {"kind": "edm"},
    }
    step = plain_step(Workload("song", 4, config=config), "cuda")
    step()
    card.waits.clear()
    step()
    assert len(card.waits) == 1  # for the loss
    assert "plain.py" in next(iter(card.waits))
