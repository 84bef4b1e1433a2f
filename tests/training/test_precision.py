"""What networks compute in, and how they are run, changes speed and rounding, not the method or the model."""

import itertools
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.bench.workload import redraw_weights
from consistune.core.objectives import Draws, Objective
from consistune.core.types import Times
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.layers import Product
from consistune.nn.precond import Preconditioned
from consistune.recipe import read_recipe
from consistune.recipe.cost import estimate
from consistune.recipe.plan import make_plan
from consistune.training.loop import Trainer
from consistune.training.options import CARD_PRECISION, TrainOptions
from consistune.training.sharding import blocks, gradient_norm
from tests.support.together import EDM2, SCT, mlp, trainer_of

UNET = "model_channels: 8, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [4]"
NETWORKS = {
    "mlp": mlp(0.2),
    "patch-unet": "network={kind: patch-unet, patch: 2, model_channels: 16, num_blocks: 1, dropout: 0.2}",
    "song": f"network={{kind: song, {UNET}, dropout: 0.2}}",
    "adm": f"network={{kind: adm, {UNET}, dropout: 0.2}}",
    "edm2": EDM2[:-1] + ", dropout: 0.2}",
}
SPLIT = ("train.shard=true",)
PRECOND = {"edm2": ("precond={kind: edm2, logvar_channels: 0}",)}


def make(network: str, *keys: str) -> Trainer:
    words = (*SCT, *PRECOND.get(network, ()), "train.images=128", "train.batch=32", *keys)
    return trainer_of(("digits-sct", NETWORKS[network], *words))


def outcome(trainer: Trainer) -> tuple[list[float], Tensor]:
    losses = [report.loss for report in trainer.steps()]
    return losses, torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@cache
def in_fp32(network: str) -> tuple[list[float], Tensor]:
    return outcome(make(network))


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


@pytest.mark.parametrize(
    ("network", "word"),
    [*itertools.product(sorted(NETWORKS), ("bf16", "fp16")), ("song", "bf16-inner"), ("edm2", "bf16-inner")],
)
def test_half_precision_is_near_and_stays_inside_the_networks(network: str, word: str) -> None:
    expected, weights = in_fp32(network)
    trainer = make(network, f"train.precision={word}")
    watched = Watched(trainer.objective)
    trainer.objective = watched
    losses, found = outcome(trainer)
    assert watched.seen == {torch.float32}
    assert 0 < distance(found, weights) < 0.02
    assert losses == pytest.approx(expected, rel=0.02)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert trainer.averaged.precision == "fp32"


@pytest.mark.parametrize("network", ["song", "adm", "edm2", "patch-unet"])
def test_bf16_inner_leaves_the_outer_layers_in_fp32_and_errs_less(network: str, generator) -> None:
    trainers = {word: make(network, f"train.precision={word}") for word in ("fp32", "bf16", "bf16-inner")}
    redraw_weights(trainers["fp32"].model, 0)
    x, t = torch.randn(8, 1, 8, 8, generator=generator), torch.logspace(-2, 1, 8)
    outputs = {}
    for word, trainer in trainers.items():
        trainer.model.load_state_dict(trainers["fp32"].model.state_dict())
        passes = trainer.precision.around(trainer.model.eval())
        with passes.exactly(), torch.no_grad():
            assert torch.equal(passes(x, t), outputs.get("fp32", passes(x, t)))
        with torch.no_grad():
            outputs[word] = passes(x, t)
    plain, inner = (distance(outputs[word], outputs["fp32"]) for word in ("bf16", "bf16-inner"))
    assert 0 < inner < 0.9 * plain
    found: Any = trainers["bf16-inner"].model.network
    exempt = {m for part in found.outer_layers for m in part.modules()}
    products = [m for m in found.modules() if isinstance(m, Product)]
    assert all(m.product_dtype == (None if m in exempt else torch.bfloat16) for m in products)
    assert 0 < sum(m in exempt for m in products) < len(products)


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


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_the_gradient_of_fp16_is_reported_and_clipped_without_its_scale(share: float) -> None:
    """To the norm that is asked for, where it is longer."""
    plain = next(make("mlp", "train.precision=fp32").steps()).gradient_norm
    for word in ("fp32", "fp16"):
        trainer = make("mlp", f"train.precision={word}", f"train.clip_norm={share * plain}")
        assert next(trainer.steps()).gradient_norm == pytest.approx(plain, rel=0.01)
        clipped = float(gradient_norm(trainer.model, trainer.processes))
        assert clipped == pytest.approx(min(share, 1.0) * plain, rel=0.01)


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - {"mlp"}))
def test_channels_last_is_a_memory_format_only(network: str) -> None:
    losses, weights = in_fp32(network)
    trainer = make(network, "train.channels_last=true")
    found, others = outcome(trainer)
    assert found == pytest.approx(losses, rel=1e-3)
    assert distance(others, weights) < 1e-3
    kernels = [p for p in trainer.model.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert kernels


@pytest.mark.parametrize("network", ["song", "adm", "edm2"])
def test_checkpointing_computes_again_what_it_did_not_keep(
    network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, weights = in_fp32(network)
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


@pytest.mark.parametrize(
    ("network", "key", "words"),
    [
        ("mlp", "checkpointing", "no blocks to checkpoint"),
        ("mlp", "channels_last", "no convolution"),
        ("song", "shard", "one process has nothing to split"),
        ("mlp", "compile=graphs", "the device is cpu"),
        ("mlp", "precision=bf16-inner", "no outer layers"),
        ("mlp", "precision={until_ratio: 0.9, first: bf16-inner}", "no outer layers"),
    ],
)
def test_what_would_have_no_effect_is_refused(network: str, key: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        make(network, f"train.{key}" if "=" in key else f"train.{key}=true")
    assert refused.value.where.startswith(f"train.{key.partition('=')[0]}")


def test_a_dry_run_plans_for_several_processes() -> None:
    words = (NETWORKS["edm2"], *SCT, *PRECOND["edm2"])
    plain, split = (make_plan(read_recipe("digits-sct", (*words, *more))) for more in ((), SPLIT))
    assert estimate(split).fixed == estimate(plain).fixed


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_a_compiled_network_trains_alike_and_is_stored_alike(network: str) -> None:
    losses, weights = in_fp32(network)
    trainer = make(network, "train.compile=true")
    found, others = outcome(trainer)
    assert found == pytest.approx(losses, rel=1e-3)  # dropout masks included
    assert distance(others, weights) < 1e-2
    assert all("forward" in vars(part) for part in blocks(trainer.model.network) or [trainer.model.network])
    names = store.build(store.describe(trainer.model)).state_dict().keys()
    assert trainer.model.state_dict().keys() == trainer.averaged.state_dict().keys() == names


CLOSE = {"fp32": 1e-4, "tf32": 0.01, "bf16": 0.05, "fp16": 0.01}
"""The largest relative difference of a step's losses from the CPU's in fp32; of gradients, four times it."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("word", CLOSE)
@pytest.mark.parametrize("network", ["mlp", "song", "edm2"])
def test_a_step_on_a_card_is_the_cpus(network: str, word: str) -> None:
    """From the same images, times and noise, without dropout; then the card goes on with its own."""
    words = (NETWORKS[network].replace("0.2", "0.0"), *SCT, *PRECOND.get(network, ()), "train.batch=8")
    trainers = {}
    for device, precision in (("cpu", "fp32"), ("cuda", word)):
        plan = make_plan(read_recipe("digits-sct", (*words, f"train.precision={precision}")), device)
        trainers[device] = plan.trainer(device)
    here, there = trainers["cpu"], trainers["cuda"]
    there.model.load_state_dict(here.model.state_dict())
    draws = here._draw()
    batch = replace(draws.batch, x_0=draws.batch.x_0.cuda(), condition=draws.batch.condition.cuda())
    times = Times(*(u.cuda() for u in (draws.times.t, draws.times.r, draws.times.s)))
    copied = replace(
        draws, batch=batch, times=times, noise=draws.noise.cuda(), estimator=there.objective.estimator
    )
    losses = [here._backward(draws, slice(0, 8)), there._backward(copied, slice(0, 8)).cpu()]
    there.precision.scaler.unscale_(there.optimizer)
    gradients = [torch.cat([p.grad.cpu().flatten() for p in t.model.parameters()]) for t in (here, there)]
    assert distance(losses[1], losses[0]) < CLOSE[word]
    assert distance(gradients[1], gradients[0]) < 4 * CLOSE[word]
    there.optimizer.zero_grad()
    there.precision.scaler.update()
    assert next(there.steps()).finite


@pytest.mark.parametrize("word", ["bf16", "tf32"])
def test_the_teacher_computes_in_the_runs_precision(word: str, tmp_path: Path) -> None:
    diffusion = make_plan(read_recipe("digits-edm", [mlp(0)]))
    store.save(diffusion.model, tmp_path / "teacher")
    keys = (f"estimator.model={tmp_path / 'teacher'}", "start_from=null", mlp(0), "train.batch=16")
    plan = make_plan(read_recipe("digits-cd", (*keys, f"train.precision={word}")))
    seen: list[tuple[bool, bool]] = []

    def note(module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, Preconditioned):
            seen.append((torch.is_autocast_enabled("cpu"), torch.backends.cuda.matmul.allow_tf32))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        assert next(plan.trainer().steps()).finite
    finally:
        hook.remove()
    assert set(seen) == {(word == "bf16", True)}


def test_in_fp32_nothing_is_rounded_to_tf32_though_it_was_allowed_before() -> None:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    allowed, exact = (make("mlp", f"train.precision={word}").precision for word in ("tf32", "fp32"))
    with allowed.scope():
        with exact.scope():
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, False)
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)


def test_flags_of_torch_are_put_back_after_a_pass() -> None:
    trainer = make("mlp", "train.precision=bf16")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark
    with trainer.precision.scope():
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark) == (True, True)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark) == before


def test_the_precision_follows_the_ratio_of_the_times_and_so_does_a_continued_run() -> None:
    """With r = (1 − 2^−(1 + n))·t after n stages of 64 images, one step each."""
    keys = ("pairs.gap={kind: const, every_images: 64}", "train.precision={until_ratio: 0.87}")
    trainer = trainer_of(("digits-sct", mlp(0), *SCT, "train.batch=64", *keys))
    assert trainer.precision.word == "bf16"
    words = []
    for _ in zip(range(4), trainer.steps(), strict=False):
        words.append(trainer.precision.word)
        if len(words) == 2:
            state = trainer.state_dict()
    assert words == ["bf16", "bf16", "fp32", "fp32"]  # r/t = 1/2, 3/4, 7/8, 15/16
    again = trainer_of(("digits-sct", mlp(0), *SCT, "train.batch=64", *keys))
    again.load_state_dict(state)
    assert next(again.steps()).finite
    assert again.precision.word == "fp32"


def test_until_ratio_needs_an_objective_with_pairs_of_times() -> None:
    with pytest.raises(UserError, match="no ratio is reached"):
        make_plan(read_recipe("digits-edm", (mlp(0), "train.precision={until_ratio: 0.9}")))
    with pytest.raises(UserError, match="until_ratio"):
        make_plan(
            read_recipe("digits-sct", (mlp(0), "start_from=null", "train.precision={until_ratio: 2.0}"))
        )


@pytest.mark.parametrize(("images", "compiled"), [(12_800, False), (1_280_000, True)])
def test_what_is_left_open_is_decided_by_the_device(
    images: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consistune.training.options.find_spec", lambda _: object())
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    options = TrainOptions(images=images)
    here, there = options.on(torch.device("cpu")), options.on(torch.device("cuda"))
    assert (here.precision, here.compile, here.channels_last) == ("fp32", False, False)
    assert (there.precision, there.compile, there.channels_last) == (CARD_PRECISION, compiled, True)
    given = TrainOptions(images=images, precision="tf32", compile=False, channels_last=False)
    assert given.on(torch.device("cuda")) == given
