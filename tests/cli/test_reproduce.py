"""`consistune reproduce` as a user sees it."""

import csv
from pathlib import Path

import pytest

from consistune.cli.reproduce import demo, reproduce
from consistune.errors import UserError
from consistune.reproduce.run import names
from tests.support.command import run_main


def run(out: Path, name: str | None = None, **changed) -> None:
    defaults = {
        "every": False,
        "listed": False,
        "data": "digits",
        "scale": "smoke",
        "seeds": None,
        "unconditional": False,
        "keys": (),
        "device": "cpu",
    }
    reproduce(name, out=out, **(defaults | changed))


def test_the_list_names_every_experiment_and_its_figure(tmp_path: Path, capsys) -> None:
    run(tmp_path, listed=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert any("figure 6" in line for line in lines)


def test_a_table_is_made_without_training(tmp_path: Path) -> None:
    run(tmp_path, "table-imagenet64")
    folder = tmp_path / "digits-smoke" / "table-imagenet64"
    with (folder / "data.csv").open() as file:
        published = {(row["method"], row["evaluations"]): row["published"] for row in csv.DictReader(file)}
    assert (published["SCT", "1"], published["SCT", "2"]) == ("2.42", "1.55")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "data.csv", "data.json", "report.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        (None, {}, "--all"),
        ("target", {"every": True}, "--all"),
        ("figure-9", {}, "unify"),
        ("target", {"scale": "night"}, "smoke, cpu, gpu, paper"),
        ("target", {"keys": ("pairs.gap.max=0.9",)}, "pairs.gap.max"),
        ("unify", {"keys": ("pairs.gap.q=3",)}, "--set"),
        (None, {"every": True, "keys": ("pairs.gap.q=3",)}, "--set"),
        ("target", {"data": "lsun"}, "emoji32"),
        ("target", {"data": str(Path("nowhere") / "mnist10k")}, "mnist10k"),
    ],
)
def test_wrong_input_gives_one_line_and_leaves_nothing(name, changed, words, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path, name, **changed)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_no_seeds_are_refused_in_one_line_and_leave_nothing(tmp_path: Path) -> None:
    done = run_main("reproduce", "target", "--seeds", 0, "--out", tmp_path)
    assert (done.returncode, done.stderr.count("\n"), "--seeds" in done.stderr) == (2, 1, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("NAME", ("unify",)),
        ("--data", ("--data", "nope")),
        ("--all", ("--all",)),
        ("--seeds", ("--seeds", 3)),
    ],
)
def test_the_list_takes_no_other_option(option: str, words: tuple[object, ...]) -> None:
    done = run_main("reproduce", "--list", *words)
    line = f"{option}: has no effect with --list; leave it out"
    assert (done.returncode, line in done.stderr, done.stdout) == (2, True, "")


def test_names_that_no_recipe_can_hold_are_refused_at_once(tmp_path: Path) -> None:
    for make in (lambda out: reproduce("target", out=out), lambda out: demo(out=out)):
        with pytest.raises(UserError, match=r"--out: .* is no name in UTF-8"):
            make(tmp_path / "bad\udcff")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"), [("data", "mine"), ("unconditional", True), ("device", "cuda:0")]
)
def test_what_changes_nothing_on_gaussians_is_refused(tmp_path: Path, option: str, value: object) -> None:
    with pytest.raises(UserError, match=f"--{option}: has no effect: unify needs no images"):
        reproduce("unify", out=tmp_path, **{option: value})  # type: ignore[arg-type]
