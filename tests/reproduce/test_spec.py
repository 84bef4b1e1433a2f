"""The shipped experiments are valid and complete, and their recipes can be made at every scale."""

from pathlib import Path

import pytest

from consistune.errors import UserError
from consistune.reproduce.run import names, read_experiment
from consistune.reproduce.spec import RunSpec, read_data_sets
from consistune.reproduce.study import Study
from consistune.reproduce.trained import Curves, EdgeSkipping, Guidance, Samples

PAPER = {
    "unify": "figure 1",
    "phases": "figure 2",
    "convergence": "figure 3",
    "target": "figure 4",
    "edge-skipping": "figure 5",
    "guidance": "figure 6",
    "table-cifar10": "table 2",
    "table-imagenet64": "table 3",
    "samples": "the sample figures",
    "mdp": "table 1 and section 3",
}
DATA_SETS = read_data_sets()


def study(data: str, scale: str, tmp_path: Path, **options) -> Study:
    return Study(tmp_path, f"data/{data}" if data != "digits" else data, scale, None, **options)


def test_every_figure_and_table_of_the_paper_has_its_experiment() -> None:
    assert {name: read_experiment(name).paper.figure for name in names()} == PAPER


@pytest.mark.parametrize(("data", "scale"), [(d, s) for d in DATA_SETS for s in DATA_SETS[d].scales])
def test_the_recipes_of_every_run_can_be_made(data: str, scale: str, tmp_path: Path) -> None:
    here = study(data, scale, tmp_path)
    for name in names():
        experiment = read_experiment(name)
        if not isinstance(experiment, Curves | EdgeSkipping | Guidance | Samples):
            continue
        budgets = set()
        for run in experiment.runs.values():
            recipe = here.recipe(run, 1)
            budgets.add((recipe.train.images, recipe.optimizer.lr, recipe.train.ema))
            assert recipe.train.seed == 1
            if run.phases:
                assert (recipe.pairs.kind, recipe.pairs.edges) == ("phased", run.phases)
                assert 1.0 in run.etas
                assert 0.0 in run.etas
        assert len(budgets) == 1, "methods that are compared have the same budget"


@pytest.mark.parametrize("data", ["digits", "mnist10k"])
def test_without_labels_the_references_are_all_images(data: str, tmp_path: Path) -> None:
    plain, unlabelled = study(data, "cpu", tmp_path), study(data, "cpu", tmp_path, unconditional=True)
    blend = "estimator={kind: blend, full_gap: 0.25, estimator: {kind: score-identity, reference: class}}"
    for run in (RunSpec(recipe="ect"), RunSpec(recipe="sct"), RunSpec(recipe="sct", set=(blend,))):
        recipe = unlabelled.recipe(run, 0)
        assert plain.recipe(run, 0).conditional
        assert not recipe.conditional
        inner = getattr(recipe.estimator, "estimator", recipe.estimator)
        assert getattr(inner, "reference", "all") == "all"
    assert plain.folder != unlabelled.folder


def test_a_baseline_is_one_of_the_runs() -> None:
    for name in ("convergence", "target"):
        experiment = read_experiment(name)
        assert isinstance(experiment, Curves)
        assert experiment.baseline in experiment.runs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("digits: {recipes: {}, scales: {night: {}}}", "night"),
        ("digits: {recipes: {}, scales: {cpu: {seeds: 0, samples: 10, points: 1}}}", "seeds"),
        ("digits: {recipes: {}, scales: {}, colour: red}", "colour"),
    ],
)
def test_a_mistake_is_named_with_its_key(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "scales.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint):
        read_data_sets(path)


@pytest.mark.parametrize(
    ("make", "remedy"),
    [
        (lambda tmp: read_experiment("figure3"), "convergence"),
        (lambda tmp: study("lsun", "cpu", tmp), "mnist10k"),
        (lambda tmp: study("digits", "paper", tmp), "smoke, cpu, gpu"),
    ],
)
def test_unknown_words_are_answered_with_the_known_ones(make, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=remedy):
        make(tmp_path)


def test_a_digest_is_of_what_is_trained_and_not_of_where(tmp_path: Path) -> None:
    from consistune.recipe import read_recipe
    from consistune.reproduce.study import digest_of

    here, there = (["data=" + str(tmp_path / name / "digits"), "start_from=x"] for name in "ab")
    one = digest_of(read_recipe("digits-sct", [*here, "train.seed=1"]), "teacher")
    assert one == digest_of(read_recipe("digits-sct", [*there, "train.seed=2"]), "teacher")
    others = {
        digest_of(read_recipe("digits-sct", here), "another teacher"),
        digest_of(read_recipe("digits-sct", [*here, "optimizer.lr=1e-4"]), "teacher"),
        digest_of(read_recipe("digits-ect", here), "teacher"),
    }
    assert len(others | {one}) == 4
