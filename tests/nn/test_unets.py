"""What every U-Net and preconditioning must do, whatever its numbers."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import consistune
from consistune.core.types import Condition
from consistune.nn import store
from consistune.nn.layers import FourierEmbedding
from consistune.nn.magnitude import MPFourier
from consistune.nn.precond import CMPrecond, Preconditioned
from consistune.recipe import read_recipe
from consistune.recipe.plan import make_plan
from tests.support.recorded import pattern

SMALL = {"image_shape": [3, 8, 8], "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
KINDS: dict[str, dict[str, Any]] = {
    "ddpmpp": {"network": {"kind": "song", "model_channels": 16, **SMALL}, "precond": {"kind": "edm"}},
    "ncsnpp": {
        "network": {"kind": "song", "model_channels": 16, **NCSNPP, **SMALL},
        "precond": {"kind": "ve"},
    },
    "skip": {
        "network": {
            "kind": "song",
            "model_channels": 16,
            "encoder_type": "skip",
            "decoder_type": "skip",
            **SMALL,
        },
        "precond": {"kind": "vp"},
    },
    "adm": {"network": {"kind": "adm", "model_channels": 64, **SMALL}, "precond": {"kind": "cm"}},
    "edm2": {"network": {"kind": "edm2", "model_channels": 64, **SMALL}, "precond": {"kind": "edm2"}},
}
X = pattern((3, 3, 8, 8), 0.5)
SIGMA = torch.tensor([0.05, 1.0, 50.0])


def make(kind: str, classes: int = 4, precond: str | None = None, **network: Any) -> Preconditioned:
    """A small model, every parameter of which matters, in evaluation mode."""
    torch.manual_seed(0)
    config = KINDS[kind]
    own = {"kind": precond} if precond else config["precond"]
    model = store.build({"network": {**config["network"], "num_classes": classes, **network}, "precond": own})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 if kind == "edm2" else parameter[0].numel() ** -0.5)
            else:
                parameter.normal_(float(name.endswith(("gain", "weight"))), 0.1)
    return model.eval()


def difference(a: Tensor, b: Tensor) -> float:
    """max |a − b| in units of max |b|."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def test_no_class_is_a_vector_of_zeros_and_labels_are_rows(kind: str) -> None:
    model, labels = make(kind), torch.tensor([0, 3, 1])
    assert torch.equal(model(X, SIGMA), model(X, SIGMA, torch.zeros(3, 4)))
    one_hot = nn.functional.one_hot(labels, 4).float()
    assert torch.equal(model(X, SIGMA, labels), model(X, SIGMA, one_hot))
    assert difference(model(X, SIGMA, labels), model(X, SIGMA)) > 1e-3
    with pytest.raises(ValueError, match="0 … 3"):
        model(X, SIGMA, torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match="unconditional"):
        make(kind, classes=0)(X, SIGMA, labels)


@torch.no_grad()
def test_images_of_a_batch_do_not_meet(kind: str) -> None:
    model, labels = make(kind), torch.tensor([0, 3, 1])
    together = model(X, SIGMA, labels)
    for i in range(3):
        assert difference(model(X[i : i + 1], SIGMA[i], labels[i : i + 1]), together[i : i + 1]) < 1e-5
    poisoned = X.clone()
    poisoned[1] = float("nan")
    assert torch.equal(model(poisoned, SIGMA, labels)[::2].isnan().any(), torch.tensor(False))


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_within_a_hundredth(kind: str, precision: Any) -> None:
    """Of the largest output, over noise levels from almost none to almost nothing else."""
    model = make(kind, precond="edm2" if kind == "edm2" else "edm")
    sigma = torch.logspace(-2, 1.9, 8)
    x = torch.randn(8, 3, 8, 8) * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    exact = model(x, sigma)
    model.precision = precision
    low = model(x, sigma)
    assert low.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 0 < difference(low, exact) < 1e-2
    model.precision = "fp32"
    assert torch.equal(model(x, sigma), exact)


def test_precisions_that_a_network_does_not_know_are_refused() -> None:
    config = {"network": {"kind": "mlp", "image_shape": [1, 4, 4]}, "precond": {"kind": "edm"}}
    with pytest.raises(consistune.errors.UserError, match="ResidualMLP computes in fp32"):
        store.build({**config, "precond": {"kind": "edm", "precision": "bf16"}})


@torch.no_grad()
def test_float64_models_compute_in_float64(kind: str) -> None:
    model = make(kind)
    exact = model.double()(X, SIGMA)
    assert exact.dtype == torch.float64
    assert 0 < difference(model.float()(X, SIGMA), exact) < 1e-4


def test_every_network_compiles_whole(kind: str) -> None:
    """fullgraph raises at the first graph break, in evaluation and in training."""
    model, labels = make(kind), torch.tensor([0, 3, 1])
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert difference(compiled(X, SIGMA, labels), model(X, SIGMA, labels)) < 1e-6
    model.train()
    compiled(X, SIGMA, labels).square().mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "logvar" not in name)


def test_channels_last_changes_nothing_but_the_layout(kind: str) -> None:
    model = make(kind)
    with torch.no_grad():
        expected = model(X, SIGMA)
        model.to(memory_format=torch.channels_last)
        assert difference(model(X, SIGMA), expected) < 1e-5


def test_a_model_folder_gives_the_same_network(kind: str, tmp_path: Path) -> None:
    model = make(kind, dropout=0.25)
    store.save(model, tmp_path)
    back = consistune.load(tmp_path)
    assert store.describe(back) == store.describe(model)
    with torch.no_grad():
        assert torch.equal(back(X, SIGMA), model(X, SIGMA))


def test_only_a_training_pass_with_gradients_rewrites_edm2s_weights() -> None:
    model = make("edm2").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        target = model(X, SIGMA)
        model.log_variance(SIGMA)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    student = model(X, SIGMA)
    assert difference(student.detach(), target) < 1e-3  # the same function, up to ε
    for name, weight in model.network.named_parameters():
        if name.endswith("weight"):
            assert not torch.equal(weight, before[f"unet.{name}"])
            assert torch.allclose(weight.square().flatten(1).mean(1), torch.ones(len(weight)), rtol=1e-3)
    student.sum().backward()
    # A weight's length changes nothing, so no gradient points along it.
    weight = model.network.out_conv.weight
    along = (weight * weight.grad).flatten(1).sum(1).abs()
    assert float((along / (weight.norm() * weight.grad.norm())).detach().max()) < 1e-3


def test_dropout_acts_in_training_alone_and_where_it_may() -> None:
    def random(model: Preconditioned) -> bool:
        return not torch.equal(model(X, SIGMA), model(X, SIGMA))

    for name in KINDS:
        assert random(make(name, dropout=0.5).train())
        assert not random(make(name, dropout=0.5))
    drops = make("edm2", dropout=0.5, dropout_res=4).network
    for name, block in [*drops.enc.items(), *drops.dec.items()]:
        if not name.endswith("_conv"):
            assert isinstance(block.dropout, nn.Dropout) == name.startswith("4x4")


def test_label_dropout_forgets_whole_labels() -> None:
    for name in ("ddpmpp", "adm"):
        model = make(name, label_dropout=0.5, dropout=0.0)
        labels = torch.full((3,), 2)
        with torch.no_grad():
            conditional, unconditional = model(X, SIGMA, labels), model(X, SIGMA)
            model.train()
            seen = set()
            for _ in range(8):
                for i, image in enumerate(model(X, SIGMA, labels)):
                    with_label = difference(image, conditional[i]) < 1e-5
                    assert with_label or difference(image, unconditional[i]) < 1e-5
                    seen.add(with_label)
        assert seen == {True, False}


def test_fresh_networks_begin_at_c_skip() -> None:
    """The last layer starts at zero (Song: 10⁻⁵ of its size), so that D starts as c_skip·x."""
    for name, config in KINDS.items():
        torch.manual_seed(0)
        model = store.build(config)
        c_skip, c_out = (scaling[:, None, None, None] for scaling in model.scalings(SIGMA)[:2])
        with torch.no_grad():
            raw = (model(X, SIGMA) - c_skip * X) / c_out
        assert float(raw.abs().max()) < (1e-3 if "song" in config["network"]["kind"] else 1e-6), name


def test_fresh_weights_have_the_published_spread() -> None:
    torch.manual_seed(0)
    networks = {kind: store.build(KINDS[kind]).network for kind in ("ddpmpp", "adm", "edm2")}
    block = networks["ddpmpp"].enc["4x4_block0"]
    fans = 9 * (block.conv0.weight.shape[0] + block.conv0.weight.shape[1])
    assert float(block.conv0.weight.detach().abs().max()) == pytest.approx((6 / fans) ** 0.5, rel=0.02)
    assert float(block.conv0.weight.detach().std()) == pytest.approx((2 / fans) ** 0.5, rel=0.05)
    assert float(block.conv1.weight.detach().abs().max()) < 2e-6
    assert float(block.qkv.weight.detach().std()) == pytest.approx((0.2 * 2 / 128) ** 0.5, rel=0.05)
    block = networks["adm"].enc["4x4_block0"]
    bound = block.conv0.weight[0].numel() ** -0.5
    for value in (block.conv0.weight, block.conv0.bias, block.qkv.bias * (128**0.5 * bound)):
        assert float(value.detach().abs().max()) == pytest.approx(bound, rel=0.05)
    assert not block.conv1.weight.any()
    assert not block.proj.bias.any()
    assert float(networks["edm2"].enc["4x4_block0"].conv_res0.weight.detach().std()) == pytest.approx(
        1, rel=0.02
    )
    assert not networks["edm2"].out_gain.any()


def test_fresh_embeddings_have_the_published_spread() -> None:
    torch.manual_seed(0)
    assert float(FourierEmbedding(8192, 0.02).freqs.std()) == pytest.approx(0.02, rel=0.05)
    turning = MPFourier(8192)
    assert float(turning.freqs.std()) == pytest.approx(2 * math.pi, rel=0.05)
    assert 0 <= float(turning.phases.min()) < 0.1
    assert 2 * math.pi - 0.1 < float(turning.phases.max()) <= 2 * math.pi
    adm = store.build({**KINDS["adm"], "network": {**KINDS["adm"]["network"], "num_classes": 64}})
    assert float(adm.network.map_label.weight.detach().std()) == pytest.approx(1, rel=0.05)


def test_augmentation_labels_are_for_networks_that_know_them() -> None:
    labels = pattern((3, 9), 0.2)
    model = make("ddpmpp", augment_dim=9)
    with torch.no_grad():
        assert difference(model(X, SIGMA, Condition(augment=labels)), model(X, SIGMA)) > 1e-3
        assert difference(model(X, SIGMA, Condition(augment=0 * labels)), model(X, SIGMA)) < 1e-6
    for unaware in (make("ddpmpp"), make("edm2")):
        with pytest.raises(ValueError, match="takes none"):
            unaware(X, SIGMA, Condition(augment=labels))
    with pytest.raises(ValueError, match=r"takes \[3, 9\]"):
        model(X, SIGMA, Condition(augment=labels[:, :8]))


def test_consistency_models_are_the_identity_at_their_boundary() -> None:
    for precond, training, boundary in (("cm", True, 0.002), ("cm", False, 0.002), ("ect", False, 0.003)):
        model = make("ddpmpp", precond=precond).train(training)
        assert model.sigma_min == boundary
        with torch.no_grad():
            assert torch.equal(model(X, boundary), X)
    model = make("ddpmpp", precond="ect").train()
    with torch.no_grad():
        assert torch.equal(model(X, 0.0), X)
    cm = make("ddpmpp", precond="cm")
    assert isinstance(cm, CMPrecond)
    edm = make("ddpmpp", precond="edm").scalings(SIGMA.double())
    given = cm.scalings(SIGMA.double())
    assert torch.allclose(given.c_noise, 1000 * edm.c_noise)
    above = SIGMA.double() - 0.002
    assert torch.allclose(given.c_skip, 0.25 / (above**2 + 0.25))
    assert torch.allclose(given.c_out, above * 0.5 / (SIGMA.double() ** 2 + 0.25).sqrt())


def test_vp_inverts_its_own_noise_schedule() -> None:
    model = make("ddpmpp", precond="vp")
    for t in (0.01, 0.1, 0.5, 1.0):
        sigma = torch.tensor([model.sigma(t)], dtype=torch.float64)
        assert float(model.scalings(sigma).c_noise) == pytest.approx(999 * t, rel=1e-4)


def test_iddpm_rounds_to_its_table() -> None:
    model = make("adm", precond="iddpm", out_channels=6)
    exact = model.u[[0, 10, 500, 999]]
    assert torch.equal(model.round_sigma(exact * 1.0001), exact)
    given = torch.tensor([[0.5, 80.0]], dtype=torch.float64)
    rounded = model.round_sigma(given)
    assert rounded.dtype == given.dtype
    assert rounded.shape == given.shape
    nearest = (given[..., None] - model.u.double()).abs().min(-1).values
    assert torch.equal((rounded - given).abs(), nearest)
    assert float(model.round_sigma(0.0)) == 0.0
    assert float(make("ddpmpp").round_sigma(0.7)) == pytest.approx(0.7)


@pytest.mark.parametrize("shape", [[3, 8, 6], [3, 9, 9]])
def test_images_that_do_not_halve_are_refused(kind: str, shape: list[int]) -> None:
    with pytest.raises(consistune.errors.UserError, match="multiple of 2"):
        store.build({**KINDS[kind], "network": {**KINDS[kind]["network"], "image_shape": shape}})


def test_a_recipe_names_them(kind: str) -> None:
    network = {k: v for k, v in KINDS[kind]["network"].items() if k != "image_shape"}
    precond = KINDS[kind]["precond"]
    given = [f"network={network}".replace("'", ""), f"precond={precond}".replace("'", ""), "dropout=0.3"]
    plan = make_plan(read_recipe("digits-edm", [*given, "start_from=null"]))
    assert store.describe(plan.model)["network"]["dropout"] == 0.3
    assert plan.model.image_shape == (1, 8, 8)
    assert {module.p for module in plan.model.modules() if isinstance(module, nn.Dropout)} == {0.3}
