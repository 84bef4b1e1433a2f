"""The list of recipes, their keys explained, and the recipes that `init` writes."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from consistune.cli.main import app
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.errors import UserError
from consistune.recipe import parse_yaml, read_recipe, shipped_recipes, to_yaml, validate
from consistune.recipe.catalogue import explained, new_recipes
from consistune.recipe.keys import explanations, meanings
from consistune.recipe.words import section
from tests.support.makers import class_folders, pixels


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_every_recipe_has_one_line() -> None:
    lines = run("recipes").splitlines()
    assert [line.split()[0] for line in lines] == shipped_recipes()
    assert all(len(line.split()) > 6 for line in lines)
    assert "(needs runs/digits-edm/model)" in next(line for line in lines if line.startswith("digits-sct "))


@pytest.mark.parametrize("name", ["digits-sct", "cifar10-sct-phased", "emoji64-edm2"])
def test_an_explained_recipe_is_the_same_recipe(name: str) -> None:
    assert to_yaml(validate(parse_yaml(explained(name), name))) == to_yaml(read_recipe(name))


def test_meanings_come_from_the_docstring() -> None:
    def made(rate: float, low: float, high: float) -> None:
        """What it does. rate: how fast. Of seconds.

        low, high: the range,
            in metres.
        """

    assert meanings(made) == {
        "rate": "how fast",
        "low": "the range, in metres",
        "high": "the range, in metres",
    }
    assert "seen so far" not in explained("digits-sct")
    assert "# training images to see in all" in explained("digits-sct")


def test_a_registered_part_without_words_is_shown_without_them() -> None:
    def made(odd_key: int = 3) -> None: ...

    assert explanations(section(made, "odd")) == {"odd_key": ""}


@pytest.fixture
def colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    source = class_folders(tmp_path / "source", list(pixels(32, 16, 16, 3)), [f"c{k % 2}" for k in range(32)])
    prepare(source, tmp_path / "mine", PrepareOptions())
    return "mine"


@pytest.mark.parametrize("method", ["sct", "ect"])
def test_init_writes_recipes_that_are_valid(method: str, colour: str) -> None:
    assert run("init", "pets", "--data", colour, "--method", method).split() == [
        "pets-teacher.yaml",
        "pets.yaml",
    ]
    teacher, tuned = read_recipe("pets-teacher.yaml"), read_recipe("pets.yaml")
    assert teacher.objective == "diffusion"
    assert teacher.network.patch == 2
    assert tuned.start_from == "runs/pets-teacher/model"
    assert tuned.pairs.gap.every_images == 100_000
    assert tuned.estimator.kind == {"sct": "score-identity", "ect": "one-sample"}[method]
    with pytest.raises(UserError, match=r"pets-teacher\.yaml: is already there"):
        CliRunner().invoke(app, ["init", "pets", "--data", colour], catch_exceptions=False)


@pytest.mark.parametrize("name", ["../up", "a b", "a/b", ""])
def test_a_name_that_is_a_path_is_refused(name: str, colour: str) -> None:
    with pytest.raises(UserError, match="is no name for a recipe"):
        CliRunner().invoke(app, ["init", name, "--data", colour], catch_exceptions=False)


@pytest.mark.parametrize("data", ["photos", "photos #2", "2024", "on", "a: b", "C:\\pictures", "ä ö", "~"])
def test_the_name_of_the_data_is_read_back_as_it_was(data: str) -> None:
    made = new_recipes("mine", data, "digits", "sct", {"kind": "mlp"}, True)
    assert all(yaml.safe_load(text)["data"] == data for text in made.values())
