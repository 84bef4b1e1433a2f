"""Every recipe that comes with the package: it is valid, its parts fit together, and a step of it works."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from consistune.data.images import DataSplit, ImageSet
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.edm2 import EDM2Precond
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import PatchUNet
from consistune.recipe import plan as planning
from consistune.recipe import read_recipe
from consistune.recipe.plan import Plan, make_plan
from consistune.recipe.reading import SHIPPED

NAMES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
SONG = "{kind: song, model_channels: 8, channel_mult: [1], num_blocks: 1, attn_resolutions: []%s}"
EDM2 = "{kind: edm2, model_channels: 8, channel_mult: [1, 1, 1], num_blocks: 1, attn_resolutions: []}"
SHAPES = {
    "mnist10k": (1, 32, 32),
    "cifar10": (3, 32, 32),
    "cifar10-jpeg": (3, 32, 32),
    "emoji32": (3, 32, 32),
    "digits": (1, 8, 8),
} | {
    "emoji64-latent": (32, 8, 8),
    "imagenet256-latent": (4, 32, 32),
}


def fixture(name: str) -> DataSplit:
    shape = SHAPES.get(Path(name).name, (3, 64, 64))
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(256, (12, *shape), generator=draw, dtype=torch.uint8)
    whole = ImageSet.of(name, images, torch.arange(12) % 3, ("a", "b", "c"))
    return DataSplit(whole, whole)


def small(name: str, folder: Path) -> list[str]:
    """Overrides that leave the recipe's method and make its network small."""
    if name.startswith("digits"):
        network = "{kind: mlp, width: 8, blocks: 1}"
    elif name.startswith("emoji64-latent"):
        network = "{kind: patch-unet, patch: 1, model_channels: 8}"
    elif name.startswith(("mnist10k", "cifar10-jpeg")):
        network = "{kind: patch-unet, model_channels: 8}"
    elif name.startswith(("imagenet64", "emoji64", "latent-256")):
        network = EDM2
    else:
        network = SONG % (", augment_dim: 9" if name == "cifar10-edm" else "")
    if read_recipe(name).objective == "mean-velocity":
        network = network[:-1] + ", second_time: true}"
    keys = [f"network={network}", "start_from=null", "train.batch=2"]
    if network == EDM2:
        keys.append("precond={kind: edm2, logvar_channels: 8}")
    recipe = read_recipe(name, keys)
    frozen = "below" if hasattr(recipe, "below") else "estimator.model"
    if "teacher" in str(getattr(recipe, "estimator", "")) or frozen == "below":
        shape = SHAPES.get(Path(recipe.data).name, (3, 64, 64))
        classes = 3 if recipe.conditional else 0
        store.save(EDMPrecond(PatchUNet(shape, classes, model_channels=8)), folder / "teacher")
        keys.append(f"{frozen}={folder / 'teacher'}")
    if recipe.objective == "trajectory":
        keys += ["steps=2", "order=2"]
    if recipe.objective == "truncated":
        keys.append("pairs.share=0.5")
    if "weights" in str(getattr(recipe, "distance", "")):  # LPIPS's are not ours to ship
        keys.append("distance={kind: huber}")
    return keys


def reduced(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setattr(planning, "load_data", fixture)
    return make_plan(read_recipe(name, small(name, folder)))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_takes_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = reduced(name, tmp_path, monkeypatch).trainer()
    # Half-way: the target is really evaluated, and a warm-up's rate is not 0.
    trainer.images = trainer.options.images // 2 // 2 * 2
    before = [p.detach().clone() for p in trainer.model.parameters()]
    report = next(trainer.steps())
    assert report.finite
    assert report.gradient_norm > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_source(name: str) -> None:
    """Where a setting comes from stands in the recipe: a paper, or "ours"."""
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    papers = "2206.00364 2312.02696 2406.14548 2410.18958 2310.14189 2303.01469 2410.14895 2509.24526"
    papers += " 2410.11081 2505.13447 2512.02012"
    assert any(paper in text for paper in papers.split())


def test_schedules_that_are_counted_twice_agree() -> None:
    """total_images of a grid or a target and t_ref in images are products of other keys."""
    for name in NAMES:
        recipe = read_recipe(name)
        text = json.loads(recipe.model_dump_json())
        size = text.get("pairs", {}).get("size", {}) if isinstance(text.get("pairs"), dict) else {}
        for section in (size, text.get("target", {})):
            assert section.get("total_images", recipe.train.images) == recipe.train.images, name
    ect = read_recipe("imagenet64-ect-xl")
    assert ect.optimizer.lr_schedule.reference_images == 2000 * ect.train.batch  # type: ignore[attr-defined]
    cifar: Any = read_recipe("cifar10-ect")
    assert cifar.pairs.gap.every_images == 25_000 * cifar.train.batch


def test_the_sizes_differ_in_what_they_should() -> None:
    s, xl = (read_recipe(f"imagenet64-sct-{size}") for size in ("s", "xl"))
    assert (s.optimizer.lr, xl.optimizer.lr) == (1e-3, 0.7e-3)  # type: ignore[attr-defined]
    assert (s.dropout, xl.dropout) == (0.40, 0.50)
    same = {"optimizer", "dropout", "start_from"}
    assert s.model_dump(exclude=same) == xl.model_dump(exclude=same)
    assert s.estimator.kind == "score-identity"  # type: ignore[union-attr]


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *keys: str) -> Plan:
    monkeypatch.setattr(planning, "load_data", fixture)
    torch.manual_seed(0)
    network = store.build(
        {
            "network": {
                "kind": "edm2",
                "image_shape": [3, 64, 64],
                "num_classes": 3,
                "model_channels": 8,
                "channel_mult": [1, 1, 2],
                "num_blocks": 1,
                "attn_resolutions": [],
            },
            "precond": {"kind": "edm2", "logvar_channels": 8},
        }
    )
    store.save(network, folder / "teacher")
    return make_plan(read_recipe(name, [f"start_from={folder / 'teacher'}", "train.batch=2", *keys]))


def test_an_edm2_start_drops_out_where_ect_says_and_leaves_the_variance_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = start(tmp_path, monkeypatch, "imagenet64-ect-s").model
    drops = {
        name: isinstance(block.dropout, torch.nn.Dropout)
        for name, block in [*model.network.enc.items(), *model.network.dec.items()]  # type: ignore[union-attr, operator]
        if hasattr(block, "dropout")
    }
    assert {name: int(name.split("x")[0]) <= 16 for name in drops} == drops
    assert set(drops.values()) == {True, False}
    assert isinstance(model, EDM2Precond)
    assert model.logvar_channels == 0
    origin: Any = model.card.start_from
    assert "logvar_linear.weight" in origin.dropped
    store.save(model, tmp_path / "tuned")
    again = store.load(tmp_path / "tuned")
    assert store.describe(again)["network"] == store.describe(model)["network"]
    assert store.describe(again)["network"]["dropout_res"] == 16
    teacher = store.load(tmp_path / "teacher")
    x, t, labels = torch.randn(2, 3, 64, 64), torch.tensor([0.3, 4.0]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(again(x, t, labels), teacher(x, t, labels))


def test_the_learned_variance_weighs_the_loss_and_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = reduced("emoji64-edm2", tmp_path, monkeypatch).trainer()
    trainer.images = 2_000_000
    head = trainer.model.logvar_linear.weight  # type: ignore[union-attr]
    before = head.detach().clone()  # type: ignore[operator]
    next(trainer.steps())
    assert not torch.equal(before, head.detach())  # type: ignore[operator, arg-type]


def test_what_is_missing_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "load_data", fixture)
    for name, words in {
        "cifar10-sct": "https://.*/edm/pretrained/edm-cifar10-32x32-uncond-vp.pkl",
        "imagenet64-sct-m": "https://.*/edm2/posthoc-reconstructions/edm2-img64-m-2147483-0.060.pkl",
        "mnist10k-sct": "consistune train mnist10k-edm",
    }.items():
        with pytest.raises(UserError, match=words):
            make_plan(read_recipe(name))


def test_options_that_a_network_does_not_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "load_data", fixture)
    with pytest.raises(UserError, match="dropout_res: PatchUNet has no such option"):
        make_plan(read_recipe("mnist10k-edm", ["dropout_res=8"]))
    with pytest.raises(UserError, match="uncertainty: 'edm' learns no"):
        make_plan(read_recipe("mnist10k-edm", ["uncertainty=true"]))
