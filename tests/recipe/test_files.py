"""Recipes as files: whatever stands in them is answered in one line with file and place, and at once."""

import time
from pathlib import Path
from typing import Any

import pytest

from consistune.errors import UserError
from consistune.recipe import build, parse_yaml, read_recipe, to_yaml, validate
from consistune.recipe.plan import make_plan
from consistune.recipe.ranges import numbers
from consistune.recipe.reading import assign

BOMB = "a0: &a0 [x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
FILES: dict[str, tuple[str | bytes, str]] = {
    "nested lists": ("a: " + "[" * 3000 + "]" * 3000, "line 1, column 43: .*more than 40 levels"),
    "nested mappings": ("".join(" " * i + "a:\n" for i in range(1000)), "line .*more than 40 levels"),
    "a date": ("extends: digits-edm\ntrain: {images: 2020-10-05}\n", "line 2, column 17: .*timestamp"),
    "a bad date": ("extends: digits-edm\ntrain: {images: 2020-13-45}\n", "line 2, column 17: .*2020-13-45"),
    "many digits": (f"a: 1\nb: {'9' * 5000}\n", "line 2, column 4: .*is no int"),
    "a long number": (f"extends: digits-edm\ntrain: {{images: {'9' * 4000}}}", "train.images=9{60}… is out"),
    "a foreign tag": ("a: !!python/object:os.system {b: 3}\n", "line 1, column 4: .*python/object"),
    "a wrong tag": ("a: 1\nb: !!int abc\n", "line 2, column 4: .*'abc' is no int"),
    "a set": ("a: !!set {b, c}\n", "line 1, column 4: .*set"),
    "latin-1": ("a: 1\nb: ä\n".encode("latin-1"), "line 2: is not UTF-8: byte 0xE4"),
    "UTF-16": ("a: 1".encode("utf-16"), "line 1: is not UTF-8"),
    "a NUL": ("a: 1\nb: \0\n", r"line 2: .*U\+0000"),
    "aliases": (BOMB, "line .*more than 20,000 values"),
    "an alias of itself": ("a: &a [*a]\n", "line 1, column 8: .*inside itself"),
    "a list as key": ("? [1, 2]\n: 3\n", "line 1, column 3: .*no key"),
    "a megabyte": ("# long\n" * 200_000, "longer than 1,048,576 bytes"),
    "infinity": ("extends: digits-edm\noptimizer: {lr: .inf}\n", "optimizer.lr=inf .*finite"),
    "escapes": ('extends: digits-edm\n"\\e[31mred": 1\n', r"unknown key \\x1b\[31mred"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    text, words = FILES[name]
    path = tmp_path / "own.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    began = time.process_time()
    with pytest.raises(UserError, match=words) as error:
        read_recipe(str(path))
    assert time.process_time() - began < 5
    line = str(error.value)
    assert line.startswith(str(path))
    assert line.isprintable()
    assert len(line) < 700


def test_a_chain_of_recipes_ends(tmp_path: Path) -> None:
    for i in range(2000):
        (tmp_path / f"r{i}.yaml").write_text(f"extends: r{i + 1}.yaml\n")
    with pytest.raises(UserError, match="more than 20 recipes"):
        read_recipe(str(tmp_path / "r0.yaml"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr=.inf", "optimizer.lr=inf"),
        ("train.batch=1e11", "train.batch=1e11|train.batch=100000000000.0"),
        ("train.batch=100000000000", "train.batch=100000000000 is out of range"),
        ("train.seed=-1", "train.seed=-1"),
        ("network.width=1000000000", "network.width=1000000000 is out of range"),
        ("network.width=60000", "network: .* GiB of memory, this machine has"),
        ("network.blocks=100000", "network.blocks=100000"),
        ("network.kind=song", "network.kind=song: .*width, blocks, .* write network={kind: song}"),
        ("law.std=0", "law"),
        ("weight.sigma_data=-1.0", "weight.sigma_data=-1.0"),
        ("train.imags=3", "did you mean images"),
        ("network.kind=sonng", "did you mean song"),
        ("optimizer.betas=[0.9, 2]", "betas must lie in"),
        ("law.high=0.001", "law.high=0.001 is out of range"),
        ("law.low=90", "law.low=90.0 is out of range"),
        ("law.mean=50", "law.mean=50.0 is out of range"),
        ("train.snapshots=[0.25, 0.5, 0.25]", "different shares"),
        ("train.ema_snapshot_precision=fp16", "no effect without ema_snapshot_images"),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_made(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_plan(read_recipe("digits-edm", [override]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mid_t=[80]", "must fall"),
        ("mid_t=[0.5, 2]", "must fall"),
        ("mid_t=[2, 2]", "must fall"),
        ("estimator.size=1000", "estimator.size=1000: has no effect: the largest group has 153 "),
    ],
)
def test_keys_that_would_have_no_effect_or_no_meaning_are_refused(override: str, words: str) -> None:
    small = ["start_from=null", "network={kind: mlp, width: 8, blocks: 1}", "dropout=null"]
    with pytest.raises(UserError, match=words):
        make_plan(read_recipe("digits-sct", [*small, override]))


def test_the_remedy_for_other_kinds_works() -> None:
    assert "song" in to_yaml(read_recipe("digits-edm", ["network={kind: song}"]))


def judge(data: dict[str, Any], parts: list[str]) -> None:
    """What one class alone can judge is judged as its object is built."""
    part: Any = validate(data)
    for inner in parts[:-1]:
        part = getattr(part, inner)
        build(part, inner, pairs=None, network=None, words={"edges": lambda *_, **__: ()}, context={})


@pytest.mark.parametrize("value", [-1, 1e300, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["digits-edm", "digits-sct-phased", "digits-cm"])
def test_no_number_is_taken_as_given(name: str, value: float) -> None:
    """No recipe's key takes a negative, a huge or an infinite number, or none."""
    lists = {"ema", "betas", "mid_t", "channel_mult", "attn_resolutions", "snapshots"}
    written = to_yaml(read_recipe(name))
    for key, old in numbers(read_recipe(name)):
        parts = key.split(".")
        if lists & set(parts) or (parts[-1] == "mean" and value == -1):
            continue
        data = parse_yaml(written, "all keys")
        assign(data, parts, -1 if isinstance(old, int) and value == -1 else float(value), key)
        with pytest.raises(UserError, match=parts[-1]):
            judge(data, parts)


def test_advice_for_a_missing_model_names_the_recipe(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text("extends: digits-edm\n")
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    (tmp_path / "runs" / "begun" / "recipe.yaml").write_text("")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match=r"consistune train here --resume$"):
        make_plan(read_recipe("digits-ect", ["start_from=here/model"]))
    for run, advice in {
        "digits-edm": "consistune train digits-edm",
        "own": "consistune train own.yaml",
        "begun": "consistune train runs/begun --resume",
        "other": "consistune train RECIPE --out runs/other",
    }.items():
        with pytest.raises(UserError, match=f"{advice}$"):
            make_plan(read_recipe("digits-ect", [f"start_from=runs/{run}/model"]))
