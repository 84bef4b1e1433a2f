"""Is a run normal? Laws of the bands, what leaves them, and what is refused."""

import json
import math
import statistics
import sys
from pathlib import Path

import pytest
import typer

from consistune.cli.check import check
from consistune.errors import UserError
from consistune.recipe import read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.recipe.reading import shipped_recipes
from consistune.recipe.yaml_text import parse_yaml
from consistune.training import expected as curves
from consistune.training.check import Watch, check_run
from consistune.training.expected import PARTS, Expected, digest_of, method_of, part_of
from consistune.training.run import RunFolder
from tests.support.curves import LOGS, write_run

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from expected import made


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    folder = tmp_path_factory.mktemp("sound")
    return made("digits-sct", [write_run(folder / str(seed), seed) for seed in range(3)])


@pytest.fixture(autouse=True)
def only_known(known: Expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "shipped", lambda: (known,))


# The bands


def test_runs_of_other_seeds_are_normal(tmp_path: Path) -> None:
    verdicts = [check_run(write_run(tmp_path / str(seed), seed)) for seed in range(100, 120)]
    assert sum(not verdict.normal for verdict in verdicts) <= 1


def test_bands_hold_the_mean_of_logarithms_and_scale_with_it(known: Expected) -> None:
    for figure, runs in known.curves.items():
        for band, column in zip(known.bands(figure), zip(*runs, strict=True), strict=True):
            assert band is not None
            assert band.middle == pytest.approx(statistics.geometric_mean(map(float, column)))
            assert band.low * band.high == pytest.approx(band.middle**2)
            assert band.low < min(column) <= max(column) < band.high
            assert band.excess(band.high) == pytest.approx(1)
            assert band.excess(band.low) == pytest.approx(-1)
            assert band.excess(float("nan")) == float("inf")


def test_negative_losses_have_bands_on_a_linear_scale() -> None:
    bands = curves._bands([(-1.0, 0.5), (-1.2, 0.3), (-1.1, 0.4)])
    assert [band.middle for band in bands if band] == pytest.approx([-1.1, 0.4])
    assert bands[0] is not None
    assert bands[0].low < -1.2 < -1.0 < bands[0].high < 0


@pytest.mark.parametrize("figure", ["loss", "gradient_norm", "loss/t=0.3-1", "evaluate/fd_percent"])
@pytest.mark.parametrize(("begin", "factor"), [(0.0, 3.0), (0.32, 2.0), (0.61, 0.4), (0.97, 3.0)])
def test_a_figure_that_leaves_its_band_is_named_with_its_step(
    tmp_path: Path, figure: str, begin: float, factor: float
) -> None:
    def change(name: str, share: float, value: float) -> float:
        return value * factor if name == figure and share > begin else value

    verdict = check_run(write_run(tmp_path / "run", 7, change=change))
    if figure.startswith("evaluate/") and factor < 1:  # better samples are no fault
        assert verdict.normal
        return
    (left,) = verdict.left
    assert left.figure == figure
    assert left.above == (factor > 1)
    assert 0 <= left.share - begin <= 2 / PARTS
    assert left.images == pytest.approx(left.share * 192_000, abs=192_000 / LOGS)
    assert verdict.causes


def test_parts_of_training_are_left_open_and_right_closed() -> None:
    assert [part_of(images, 200) for images in (1, 10, 11, 190, 191, 200, 260)] == [0, 0, 1, 18, 19, 19, 19]


@pytest.mark.parametrize("lines", range(1, 13))
def test_the_first_lines_of_a_part_are_not_taken_for_the_whole(tmp_path: Path, lines: int) -> None:
    assert check_run(write_run(tmp_path / "run", 8, upto=lines / LOGS)).normal


def test_a_run_that_is_not_finished_is_compared_as_far_as_it_is(tmp_path: Path) -> None:
    verdict = check_run(write_run(tmp_path / "run", 8, upto=0.4))
    assert verdict.normal
    assert verdict.images == pytest.approx(0.4 * verdict.total)


# Which curves a run is compared with


def test_a_changed_key_is_the_first_likely_cause(tmp_path: Path) -> None:
    def change(name: str, share: float, value: float) -> float:
        return 4 * value

    keys = ("optimizer.lr=0.015", "train.microbatch=32", "train.log_images=3200")
    verdict = check_run(write_run(tmp_path / "run", 9, keys=keys, change=change))
    assert [difference.key for difference in verdict.compared.differences] == ["optimizer.lr"]
    assert "optimizer.lr is 0.015 instead of 0.0005" in verdict.causes[0].what


def test_other_images_are_named_or_not_compared(tmp_path: Path) -> None:
    relabelled = write_run(tmp_path / "a", 9, keys=("data=elsewhere/digits",), data_sha256="b" * 64)
    assert [one.key for one in check_run(relabelled).compared.differences] == ["data"]
    other = write_run(tmp_path / "b", 9, keys=("data=data/mine",), data_sha256="b" * 64)
    assert check_run(other).compared.expected is None
    assert check_run(other, against="digits-sct").compared.expected is not None
    moved = write_run(tmp_path / "c", 9, keys=("data=data/mine",))
    assert check_run(moved).compared.differences == ()


def test_another_recipe_is_not_compared(tmp_path: Path) -> None:
    verdict = check_run(write_run(tmp_path / "run", 9, recipe="digits-edm"))
    assert verdict.compared.expected is None
    assert "digits-sct" in verdict.compared.reason
    one_sample = write_run(
        tmp_path / "kind", 9, keys=("estimator={kind: one-sample}",)
    )  # one key, another kind
    assert "digits-sct differs in estimator" in check_run(one_sample).compared.reason
    assert check_run(one_sample, against="digits-sct").compared.expected is not None


def test_fewer_images_are_compared_only_where_the_schedule_is_as_much_shorter(tmp_path: Path) -> None:
    short = ("train.images=96_000",)
    refused = check_run(write_run(tmp_path / "a", 9, keys=short))
    assert refused.compared.expected is None
    assert "every_images" in refused.compared.reason
    scaled = check_run(write_run(tmp_path / "b", 9, keys=(*short, "pairs.gap.every_images=16_000")))
    assert scaled.compared.expected is not None
    assert scaled.compared.differences == ()
    other = check_run(write_run(tmp_path / "c", 9, keys=("pairs.gap.every_images=16_000",)))
    assert [one.key for one in other.compared.differences] == ["pairs.gap.every_images"]


# Faults that need no curves


@pytest.mark.parametrize(
    ("recipe", "keys", "figure", "value", "word"),
    [
        ("digits-edm", (), "nonfinite_total", 300.0, "non-finite"),
        ("digits-edm", (), "loss", 1.0, "did not fall"),
        ("digits-edm", (), "gradient_norm", 0.0, "gradients are 0"),
        ("digits-edm", ("train.clip_norm=0.1",), None, 0.0, "clip_norm"),
    ],
)
def test_a_fault_is_found_without_curves(
    tmp_path: Path, recipe: str, keys: tuple[str, ...], figure: str | None, value: float, word: str
) -> None:
    sound = check_run(write_run(tmp_path / "sound", 3, recipe=recipe))
    assert sound.normal
    run = write_run(
        tmp_path / "run", 3, recipe=recipe, keys=keys, change=lambda n, s, v: value if n == figure else v
    )
    if figure == "nonfinite_total":
        log = run / "metrics.jsonl"
        log.write_text(log.read_text().replace('"nonfinite_total": 0', '"nonfinite_total": 300'))
    (problem,) = check_run(run).problems
    assert word in problem.what
    assert problem.remedy


def test_gradients_that_explode_at_the_end_are_a_fault(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", 3, recipe="digits-edm",
        change=lambda name, share, v: 100 * v if name == "gradient_norm" and share > 0.7 else v,
    )  # fmt: skip
    (problem,) = check_run(run).problems
    assert "gradient norm grew" in problem.what


# Input that cannot be used


def test_what_is_no_run_or_no_curve_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"recipe.yaml is missing"):
        check_run(tmp_path)
    run = write_run(tmp_path / "run", 1)
    with pytest.raises(UserError, match="did you mean digits-sct"):
        check_run(run, "digits-sc")
    (tmp_path / "x.json").write_text('{"name": 3}')
    with pytest.raises(UserError, match="no file of expected curves"):
        check_run(run, str(tmp_path / "x.json"))
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no line yet"):
        check_run(run)
    for text in ("- a list\n", "", "objective: diffusion\ntrain: {images: 1}\n"):
        (run / "recipe.yaml").write_text(text)
        with pytest.raises(UserError, match="no recipe"):
            check_run(run)
        with pytest.raises(UserError, match="no recipe"):
            RunFolder(run, to_yaml(read_recipe("digits-edm")), resume=True)
    (run / "recipe.yaml").write_text("[" * 5000)
    with pytest.raises(UserError, match="cannot be read"):
        check_run(run)


def test_runs_that_are_not_alike_make_no_curves(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(seed), seed) for seed in (1, 2)]
    with pytest.raises(SystemExit, match="no spread"):
        made("digits-sct", runs[:1])
    with pytest.raises(SystemExit, match="a seed twice"):
        made("digits-sct", [runs[0], runs[0]])
    odd = write_run(tmp_path / "odd", 4, keys=("optimizer.lr=0.1",))
    with pytest.raises(SystemExit, match=r"optimizer\.lr"):
        made("digits-sct", [*runs, odd])


# The command, and the line while a run trains


def test_the_command_says_normal_or_what_left_its_band(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(write_run(tmp_path / "sound", 21))
    assert capsys.readouterr().out.endswith("\nnormal\n")
    broken = write_run(tmp_path / "broken", 21, change=lambda n, s, v: 3 * v if n == "loss" else v)
    with pytest.raises(typer.Exit) as ended:
        check(broken)
    assert ended.value.exit_code == 1
    out = capsys.readouterr().out
    assert "loss left the expected band at step 75 (9,600 images)" in out
    with pytest.raises(typer.Exit):
        check(broken, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["normal"], said["left"][0]["figure"], said["compared_with"]) == (False, "loss", "digits-sct")


def test_a_run_whose_first_part_is_not_over_is_not_compared_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "young", 7)
    log = run / "metrics.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")
    check(run)
    assert "too early to compare its losses" in capsys.readouterr().out
    check(run, as_json=True)
    assert json.loads(capsys.readouterr().out)["normal"]


def test_the_json_of_a_loss_that_is_not_finite_is_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "bad", 7, change=lambda name, share, value: math.nan if share > 0.5 else value)
    with pytest.raises(typer.Exit):
        check(run, as_json=True)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    left = json.loads(capsys.readouterr().out, parse_constant=refuse)["left"]
    assert None in [one["value"] for one in left]


def test_training_says_once_and_soon_that_a_figure_left_its_band(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", 5, change=lambda n, share, v: 5 * v if n == "gradient_norm" and share > 0.5 else v
    )
    lines, log = (run / "metrics.jsonl").read_text().splitlines(keepends=True), run / "metrics.jsonl"
    said: list[tuple[int, str]] = []
    log.write_text("")
    seen = 0
    watch = Watch(run, "a" * 64, lambda line: said.append((seen, line)))
    for line in lines:
        with log.open("a") as file:
            file.write(line)
        seen = json.loads(line)["images"]
        watch.look(seen)
    ((images, text),) = said
    assert 96_000 < images <= 96_000 + 192_000 // PARTS + 192_000 // LOGS
    assert text.startswith("gradient_norm left the expected band at step")


def test_a_run_says_it_in_its_log_and_goes_on_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = "network={kind: mlp, width: 8, blocks: 1}"
    recipe = read_recipe("digits-edm", [network, "train={images: 640, batch: 32, log_images: 32}"])
    plan = make_plan(recipe)
    method = method_of(parse_yaml(to_yaml(recipe), "recipe"))
    flat = tuple((value,) * PARTS for value in (100.0, 101.0))
    wrong = Expected(
        name="made-up", recipe=method, recipe_sha256=digest_of(method, 640), images=640, data="digits",
        data_sha256=plan.data.train.fingerprint, runs=(), curves={"loss": flat},
    )  # fmt: skip
    monkeypatch.setattr(curves, "shipped", lambda: (wrong,))
    list(RunFolder(tmp_path / "run", to_yaml(recipe), resume=False).steps(plan.trainer()))
    said = (tmp_path / "run" / "log.txt").read_text()
    assert said.count("loss left the expected band at step 1 (32 images)") == 1
    assert capsys.readouterr().err.count("left the expected band") == 1
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize(
    ("name", "key"), [("digits-ect", "start_from"), ("digits-cd", "estimator.model"), ("digits-tcm", "below")]
)
def test_where_a_model_lies_changes_no_curve(name: str, key: str) -> None:
    here, there = (
        method_of(parse_yaml(to_yaml(read_recipe(name, keys)), name)) for keys in ([], [f"{key}=elsewhere"])
    )
    assert here == there


# The curves of the package


@pytest.mark.parametrize("path", sorted(curves.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_the_curves_of_the_package_are_of_its_recipes(path: Path) -> None:
    found = curves.read_expected(path)
    assert path.stat().st_size <= 100_000
    assert found.name == path.stem
    assert found.name in shipped_recipes()
    recipe = parse_yaml(to_yaml(read_recipe(found.name)), found.name)
    assert method_of(recipe) == found.recipe
    assert digest_of(method_of(recipe), recipe["train"]["images"]) == found.recipe_sha256
    assert len({run["seed"] for run in found.runs}) >= 3
    assert {"loss", "gradient_norm"} < set(found.curves)
