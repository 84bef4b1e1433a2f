"""Recipes: strict, explained in one line, and complete when written out."""

from pathlib import Path

import pytest
import torch

from consistune.core.estimators import Blend, OneSample, ScoreIdentity
from consistune.core.objectives import Consistency
from consistune.core.posterior.bank import HostReference
from consistune.core.times import LogNormalPairs, Phased, SigmoidGap, karras_edges
from consistune.data.images import DataSplit, ImageSet
from consistune.errors import UserError
from consistune.nn import store
from consistune.recipe import parse_yaml, read_recipe, recipe_path, to_yaml, validate
from consistune.recipe.plan import Given, make_plan

TINY = ["network={kind: mlp, width: 8, blocks: 1}", "start_from=null"]


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("train.imagess=3", ["train.imagess", "batch", "images"]),
        ("train.images=3.5", ["train.images", "integer"]),
        ("pairs.gap.kind=linear", ["pairs.gap.kind", "sigmoid", "const"]),
        ("pairs.gap={kind: sigmoid, qq: 1}", ["pairs.gap.qq", "stages_per_halving"]),
        ("pairs.gap.q=1", ["pairs", "q must be greater than 1"]),
        ("estimator.kind=two-sample", ["estimator.kind", "one-sample", "score-identity"]),
        ("estimator={kind: score-identity}", ["estimator.reference", "missing"]),
        (
            "estimator={kind: score-identity, reference: everything}",
            ["estimator.reference", "batch", "class"],
        ),
        (
            "estimator={kind: score-identity, reference: class, bank: moon}",
            ["estimator.bank", "auto", "sharded"],
        ),
        ("optimizer.kind=sgd", ["optimizer.kind", "radam"]),
        ("optimizer.lr_schedule.kind=step", ["optimizer.lr_schedule.kind", "cosine"]),
        ("network.kind=unet", ["network.kind", "mlp"]),
        ("objective=distillation", ["objective", "diffusion", "consistency"]),
        ("dropout=1.5", ["dropout", "less than 1"]),
        ("train.batch=0", ["train", "batch must be at least 1"]),
        ("data=cifar", ["data", "cifar", "digits"]),
        ("train.ema=[2]", ["train", "ema"]),
        ("nonsense", ["nonsense", "key=value"]),
        ("data=my #1 set", ["data", "'#1 set' would be left out", "'data=\"my #1 set\"'"]),
        ("data=#1", ["data", "'#1' would be left out"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(override: str, names: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make_plan(read_recipe("digits-ect", [*TINY, override]))
    line = str(error.value)
    assert "\n" not in line
    for name in names:
        assert name in line


def test_a_command_to_type_is_quoted() -> None:
    with pytest.raises(UserError, match="consistune train RECIPE --out 'runs/my run'"):
        make_plan(read_recipe("digits-ect", ["start_from=runs/my run/model"]))


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (
            ["estimator={kind: score-identity, reference: all}"],
            ["reference=all", "class", "conditional: false"],
        ),
        (["conditional=false", "estimator={kind: score-identity, reference: class}"], ["reference=class"]),
        (
            ["estimator={kind: score-identity, reference: batch, bank: host}"],
            ["estimator.bank=host", "reference: class"],
        ),
        (
            ["estimator={kind: score-identity, reference: class, size: 9, bank: sharded}"],
            ["estimator.size=9", "bank: device"],
        ),
        (
            ["estimator={kind: score-identity, reference: class, bank: sharded}"],
            ["bank=sharded", "several processes", "torchrun"],
        ),
        (["loss.steps=2"], ["one-sample", "loss.steps"]),
        (["loss.method=heun"], ["one-sample"]),
        (
            ["loss.distance={kind: adaptive-huber, scatter: own}"],
            ["loss.distance.scatter", "one-sample", "kind: huber"],
        ),
        (
            [
                "loss.distance={kind: adaptive-huber, scatter: measured}",
                "estimator={kind: blend, estimator: {kind: score-identity, reference: class, size: 1}}",
            ],
            ["loss.distance.scatter", "one-sample", "another estimator"],
        ),
        (["network=null"], ["network", "start_from"]),
        (["start_from=somewhere"], ["network", "start_from"]),
    ],
)
def test_impossible_combinations_are_refused(overrides: list[str], names: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make_plan(read_recipe("digits-ect", [*TINY, *overrides]))
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("recipe", ["digits-meanflow", "digits-imf"])
def test_own_scatter_is_refused_where_it_changes_nothing(recipe: str) -> None:
    keys = ["network.width=8", "network.blocks=1", "scale.scatter=own"]
    make_plan(read_recipe(recipe, keys))
    with pytest.raises(UserError, match=r"scale\.scatter: a one-sample estimate"):
        make_plan(read_recipe(recipe, [*keys, "estimator={kind: one-sample}"]))


def test_a_start_that_knows_other_classes_is_adapted_and_says_so(tmp_path: Path) -> None:
    plan = make_plan(read_recipe("digits-edm", [TINY[0], "conditional=false"]))
    store.save(plan.model, tmp_path / "model")
    plan = make_plan(read_recipe("digits-ect", [f"start_from={tmp_path / 'model'}"]))
    assert plan.model.num_classes == 10
    assert plan.notes == [f"started from {tmp_path / 'model'}", "new: model.map_label.weight"]


@pytest.mark.parametrize("channels", [1, 2, 3, 32])
def test_what_a_run_will_not_do_is_said_at_its_start(channels: int) -> None:
    images, labels = torch.zeros(20, channels, 8, 8, dtype=torch.uint8), torch.arange(20) // 2
    data = DataSplit(ImageSet.of("bands", images, labels, tuple("abcdefghij")), None)
    keys = [TINY[0], "train={images: 640, batch: 64, evaluate_images: 641}"]
    plan = make_plan(read_recipe("digits-edm", keys), given=Given(data=data))
    sheet = [f"no pictures of samples will be drawn: images of {channels} channels are no pictures"]
    measure = "the model will not be measured: train.evaluate_images is 641, the run ends at 640"
    assert plan.notes == [*(sheet if channels in (2, 32) else []), measure]


def test_a_teacher_that_knows_other_classes_is_refused(tmp_path: Path) -> None:
    plan = make_plan(read_recipe("digits-edm", [TINY[0], "conditional=false"]))
    path = store.save(plan.model, tmp_path / "model")
    keys = [f"start_from={path}", f"estimator={{kind: teacher, model: {path}}}"]
    with pytest.raises(UserError, match="0 classes"):
        make_plan(read_recipe("digits-ect", keys))


def test_a_teachers_posterior_scatter_is_refused_and_its_own_is_not(tmp_path: Path) -> None:
    path = store.save(make_plan(read_recipe("digits-edm", TINY[:1])).model, tmp_path / "model")
    keys = [f"start_from={path}", f"estimator={{kind: teacher, model: {path}}}"]
    make_plan(read_recipe("digits-ect", [*keys, "loss.distance={kind: adaptive-huber, scatter: own}"]))
    with pytest.raises(UserError, match=r"loss\.distance\.scatter: the estimator knows no posterior"):
        make_plan(
            read_recipe("digits-ect", [*keys, "loss.distance={kind: adaptive-huber, scatter: posterior}"])
        )


def test_an_override_reaches_its_object() -> None:
    keys = [
        "pairs.gap.stages_per_halving=8",
        "pairs.std=1.5",
        "estimator={kind: score-identity, reference: class}",
    ]
    objective = make_plan(read_recipe("digits-ect", [*TINY, *keys])).objective
    assert isinstance(objective, Consistency)
    assert isinstance(objective.pairs, LogNormalPairs)
    assert isinstance(objective.pairs.gap, SigmoidGap)
    assert (objective.pairs.std, objective.pairs.gap.stages_per_halving) == (1.5, 8)
    assert isinstance(objective.estimator, ScoreIdentity)
    assert objective.estimator.reference is not None
    assert len(objective.estimator.reference.offsets) == 11


def test_the_word_bank_says_where_the_reference_lies() -> None:
    for estimator in ("{kind: score-identity, %s}", "{kind: blend, estimator: {kind: score-identity, %s}}"):
        key = "estimator=" + estimator % "reference: class, bank: host"
        objective = make_plan(read_recipe("digits-ect", [*TINY, key])).objective
        assert isinstance(objective, Consistency)
        found = objective.estimator
        identity = found.estimator if isinstance(found, Blend) else found
        assert isinstance(identity, ScoreIdentity)
        assert isinstance(identity.reference, HostReference)


def test_parts_nest() -> None:
    key = "pairs={kind: phased, edges: [1.0], pairs: {kind: lognormal, gap: {kind: const}}}"
    objective = make_plan(read_recipe("digits-ect", [*TINY, key])).objective
    assert isinstance(objective, Consistency)
    assert isinstance(objective.pairs, Phased)
    assert objective.pairs.edges == (1.0,)
    assert isinstance(objective.estimator, OneSample)


@pytest.mark.parametrize("kind", ["vp", "rectified-flow", "trigonometric"])
@pytest.mark.parametrize("name", ["digits-edm", "digits-sct"])
def test_another_process_trains_to_the_same_numbers(name: str, kind: str) -> None:
    keys = [TINY[0], "start_from=null", "train={images: 320, batch: 64}", "optimizer.lr=1e-3"]
    losses = []
    for schedule in ("edm", kind):
        trainer = make_plan(read_recipe(name, [*keys, f"schedule.kind={schedule}"])).trainer()
        losses.append([report.loss for report in trainer.steps()])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_phases_are_given_by_edges_or_by_number_and_stored_in_sampling_time() -> None:
    key = "pairs={kind: phased, edges: 4, pairs: {kind: lognormal, gap: {kind: const}}}"
    stored = []
    for schedule in ("edm", "rectified-flow"):
        plan = make_plan(read_recipe("digits-ect", [*TINY, key, f"schedule.kind={schedule}"]))
        stored.append(plan.model.card.edges)
    assert stored[0] == pytest.approx(list(karras_edges(4)))
    assert stored[1] == pytest.approx(stored[0])
    with pytest.raises(UserError, match=r"pairs\.edges"):
        read_recipe(
            "digits-ect",
            [*TINY, "pairs={kind: phased, edges: one, pairs: {kind: lognormal, gap: {kind: const}}}"],
        )


@pytest.mark.parametrize("name", [p.stem for p in sorted(recipe_path("digits-edm").parent.glob("*.yaml"))])
def test_the_written_recipe_reads_back_the_same(name: str) -> None:
    recipe = read_recipe(name)
    assert validate(parse_yaml(to_yaml(recipe), "written")) == recipe


def test_numbers_are_yaml_1_2_and_keys_unique() -> None:
    assert parse_yaml("{a: 1e-4, b: 2_000, c: 1.5}", "x") == {"a": 1e-4, "b": 2000, "c": 1.5}
    with pytest.raises(UserError, match="twice"):
        parse_yaml("a: 1\na: 2\n", "x")
    with pytest.raises(UserError, match="line 2"):
        parse_yaml("a: 1\n  b: [\n", "x")


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(UserError, match="digits-edm"):
        read_recipe("digits-emd")


def written(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_recipe_takes_over_another(tmp_path: Path) -> None:
    written(
        tmp_path,
        base="extends: digits-ect\ntrain: {batch: 32}\n",
        own="extends: base.yaml\nestimator: {kind: score-identity, reference: batch}\ntrain: {seed: 7}\n",
    )
    recipe = read_recipe(str(tmp_path / "own.yaml"), ["optimizer.lr=2e-4"])
    expected = read_recipe(
        "digits-ect",
        [
            "train.batch=32",
            "train.seed=7",
            "estimator={kind: score-identity, reference: batch}",
            "optimizer.lr=2e-4",
        ],
    )
    assert recipe == expected
    assert "extends" not in to_yaml(recipe)


def test_a_section_of_another_kind_replaces_the_whole(tmp_path: Path) -> None:
    written(tmp_path, own="extends: digits-sct\npairs: {kind: grid, size: {kind: fixed, n: 9}}\n")
    recipe = read_recipe(str(tmp_path / "own.yaml"))
    assert recipe == read_recipe("digits-sct", ["pairs={kind: grid, size: {kind: fixed, n: 9}}"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: own.yaml", "cannot extend itself"),
        ("extends: other.yaml", "cannot extend itself"),
        ("extends: nowhere", "no such recipe: 'nowhere'"),
        ("extends: [a, b]", "is not allowed"),
        ("extends: digits-sct\nestimator: {kind: one-sample}\nloss: {stepz: 2}", "unknown key loss.stepz"),
    ],
)
def test_what_cannot_be_taken_over_is_said(tmp_path: Path, text: str, words: str) -> None:
    written(tmp_path, own=text, other="extends: own.yaml")
    with pytest.raises(UserError, match=words):
        read_recipe(str(tmp_path / "own.yaml"))


def test_a_list_of_averages_takes_numbers_and_sections() -> None:
    recipe = read_recipe("digits-edm", ["train.ema=[0.9, {kind: power, std: 0.1}]"])
    assert validate(parse_yaml(to_yaml(recipe), "again")) == recipe
    for value, words in {
        "[{kind: powr}]": "train.ema.0.kind='powr' is unknown; did you mean power. allowed are: 'half-life'",
        "[0.9, {kind: power, stdd: 1}]": "train.ema.1.std is missing",
        "[{kind: half-life, images: 1.5}]": "train.ema.0.images=1.5",
        "[{std: 0.1}]": "train.ema.0.kind is missing",
        "[a]": "train.ema.0='a'",
    }.items():
        with pytest.raises(UserError, match=words):
            read_recipe("digits-edm", [f"train.ema={value}"])


@pytest.mark.parametrize(("sides", "fits"), [("[4]", True), ("[]", True), ("[16]", False), ("[8, 5]", False)])
def test_attention_at_a_side_that_no_level_has_is_refused(sides: str, fits: bool) -> None:
    network = "kind: song, model_channels: 8, channel_mult: [1, 2], num_blocks: 1, channel_mult_emb: 1"
    recipe = read_recipe("digits-edm", [f"network={{{network}, attn_resolutions: {sides}}}"])
    if fits:
        make_plan(recipe)
    else:
        with pytest.raises(UserError, match=r"network\.attn_resolutions: .*levels are \[8, 4\]"):
            make_plan(recipe)


def test_the_same_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    """The class embedding would be taken as it is, and cats would be drawn for dogs."""
    images, labels = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) // 10
    data = {
        names: DataSplit(ImageSet.of("pets", images, labels, names), None)
        for names in (("cat", "dog"), ("dog", "cat"), ("0", "1"))
    }
    plan = make_plan(read_recipe("digits-edm", TINY[:1]), given=Given(data=data["cat", "dog"]))
    plan.model.card = plan.model.card.updated(class_names=("cat", "dog"), objective="diffusion")
    path = store.save(plan.model, tmp_path / "model")
    start, teacher = f"start_from={path}", f"estimator={{kind: teacher, model: {path}}}"
    for recipe, keys in (("digits-ect", [start]), ("digits-cd", [start, teacher])):
        for names, given in data.items():
            if names == ("dog", "cat"):
                with pytest.raises(UserError, match=r"start_from: .* are cat, dog, the data's dog, cat"):
                    make_plan(read_recipe(recipe, keys), given=Given(data=given))
            else:
                make_plan(read_recipe(recipe, keys), given=Given(data=given))


def test_integers_are_not_those_of_yaml_1_1() -> None:
    assert parse_yaml("{a: 010, b: 1:30, c: 0, d: -7, e: 0x1F}", "x") == {
        "a": "010", "b": "1:30", "c": 0, "d": -7, "e": 31,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"train\.images='010'"):
        read_recipe("digits-edm", ["train.images=010"])
