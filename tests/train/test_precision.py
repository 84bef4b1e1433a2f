"""What networks compute in, and how they are run, changes speed and rounding, not the method or the model."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.core.objectives import Draws, Objective
from consistune.errors import UserError
from consistune.nn import store
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from consistune.train.loop import Trainer
from tests.support.together import EDM2, SCT, mlp, trainer_of

UNET = "model_channels: 8, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [4]"
NETWORKS = {
    "mlp": mlp(0.2),
    "patch-unet": "network={kind: patch-unet, patch: 2, model_channels: 16, num_blocks: 1, dropout: 0.2}",
    "song": f"network={{kind: song, {UNET}, dropout: 0.2}}",
    "adm": f"network={{kind: adm, {UNET}, dropout: 0.2}}",
    "edm2": EDM2[:-1] + ", dropout: 0.2}",
}
PRECOND = {"edm2": ("precond={kind: edm2, logvar_channels: 0}",)}


def make(network: str, *keys: str) -> Trainer:
    words = (*SCT, *PRECOND.get(network, ()), "train.images=128", "train.batch=32", *keys)
    return trainer_of(("digits-sct", NETWORKS[network], *words))


def outcome(trainer: Trainer) -> tuple[list[float], Tensor]:
    losses = [report.loss for report in trainer.steps()]
    return losses, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Watched(Objective):
    """An objective that notes the dtypes of what passes."""

    def __init__(self, inner: Objective) -> None:
        self.inner = inner
        self.seen: set[torch.dtype] = set()

    def draw(self, *arguments: Any) -> Draws:
        return self.inner.draw(*arguments)

    def losses(self, model: Any, target: Any, draws: Draws) -> Tensor:
        def through(x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            assert not torch.is_autocast_enabled("cpu")  # references and losses are outside
            x_0 = model(x, t, condition)
            self.seen |= {x.dtype, t.dtype, x_0.dtype}
            return x_0

        losses = self.inner.losses(through, target, draws)
        self.seen.add(losses.dtype)
        return losses


@pytest.mark.parametrize("word", ["bf16", "fp16"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_half_precision_is_near_and_stays_inside_the_networks(network: str, word: str) -> None:
    expected, weights = outcome(make(network))
    trainer = make(network, f"train.precision={word}")
    watched = Watched(trainer.objective)
    trainer.objective = watched
    losses, found = outcome(trainer)
    assert watched.seen == {torch.float32}
    assert 0 < distance(found, weights) < 0.02
    assert losses == pytest.approx(expected, rel=0.02)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.averaged.precision == "fp32"


def test_fp16_overflow_is_skipped_halves_the_scale_and_is_remembered() -> None:
    trainer = make("mlp", "train.precision=fp16")
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    steps = trainer.steps()
    first = next(steps)
    assert not first.finite
    assert first.nonfinite_total == 1
    assert trainer.precision.scaler.get_scale() == 2.0**119
    again = make("mlp", "train.precision=fp16")
    again.load_state_dict(trainer.state_dict())
    assert again.precision.scaler.get_scale() == 2.0**119
    assert again.nonfinite_in_a_row == 1


def test_the_gradient_of_fp16_is_reported_and_clipped_without_its_scale() -> None:
    reports = [next(make("mlp", f"train.precision={word}").steps()) for word in ("fp32", "fp16")]
    assert reports[1].gradient_norm == pytest.approx(reports[0].gradient_norm, rel=0.01)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_channels_last_is_a_memory_format_only(network: str) -> None:
    losses, weights = outcome(make(network))
    trainer = make(network, "train.channels_last=true")
    found, others = outcome(trainer)
    assert found == pytest.approx(losses, rel=1e-3)
    assert distance(others, weights) < 1e-3
    kernels = [p for p in trainer.model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert bool(kernels) == (network in ("song", "adm", "edm2", "patch-unet"))


@pytest.mark.parametrize("network", ["song", "adm", "edm2"])
def test_checkpointing_computes_again_what_it_did_not_keep(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, weights = outcome(make(network))
    trainer = make(network, "train.checkpointing=true")
    passes: list[bool] = []
    block = next(b for b in trainer.model.network.dec.values() if len(list(b.parameters())) > 2)  # type: ignore[union-attr]
    block.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    found, others = outcome(trainer)
    assert found == pytest.approx(losses, rel=1e-5)  # dropout masks included
    assert distance(others, weights) < 1e-4
    assert sum(passes) == 2 * len(losses)
    assert (
        trainer.averaged.state_dict().keys() == store.build(store.describe(trainer.model)).state_dict().keys()
    )


def test_a_network_without_blocks_is_not_checkpointed() -> None:
    with pytest.raises(UserError, match="no blocks to checkpoint"):
        make("mlp", "train.checkpointing=true")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_compiled_network_trains_alike_and_is_stored_alike(network: str) -> None:
    losses, weights = outcome(make(network))
    trainer = make(network, "train.compile=true")
    found, others = outcome(trainer)
    assert found == pytest.approx(losses, rel=1e-3)  # dropout masks included
    assert distance(others, weights) < 1e-2
    assert trainer.model.network._compiled_call_impl is not None
    names = store.build(store.describe(trainer.model)).state_dict().keys()
    assert trainer.model.state_dict().keys() == trainer.averaged.state_dict().keys() == names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("word", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_card_trains_as_the_cpu(network: str, word: str) -> None:
    """Other noise is drawn there, so runs are compared by where they go."""
    losses = []
    for device in ("cpu", "cuda"):
        keys = (*SCT, *PRECOND.get(network, ()), "train.images=12800", f"train.precision={word}")
        plan = make_plan(read_recipe("digits-sct", (NETWORKS[network], *keys)), torch.device(device))
        reports = list(plan.trainer(device).steps())
        assert not any(report.nonfinite_total for report in reports)
        losses.append(sum(report.loss for report in reports[-100:]) / 100)
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
