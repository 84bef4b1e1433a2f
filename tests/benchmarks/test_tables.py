"""No table or figure of the docs that its script would not make of the records."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def place(page: str, name: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.partition(f"<!-- begin {name} -->\n")[2].partition(f"<!-- end {name} -->")[0]


def test_tables_are_those_of_the_records() -> None:
    import tables

    for page, made in tables.TABLES.items():
        for name, table in made.items():
            assert place(page, name) == table().rstrip("\n") + "\n", f"{page}: python benchmarks/tables.py"


def test_memorisation_has_the_tables_and_the_plot_of_the_records() -> None:
    import memorisation

    for name in ("compared", "ends"):
        assert place(memorisation.PAGE, name) == getattr(memorisation, name)()
    assert numbers((ROOT / "docs" / "memorisation.svg").read_text("utf-8")) == numbers(memorisation.plot())


def test_goals_are_held_against_the_records() -> None:
    import goals

    for name, table in goals.TABLES.items():
        assert place(goals.PAGE, name) == table()


def test_a_goal_is_missed_by_the_mean_alone() -> None:
    import goals

    def runs(*ends: float) -> list[dict]:
        points = [{"steps_1": {"frechet_train": end}, "steps_2": {"frechet_train": 1.0}} for end in ends]
        return [{"seed": seed, "curve": [point, point]} for seed, point in enumerate(points)]

    ect = runs(1.0, 1.0)
    assert goals.verdict(goals.LABELLED, runs(0.7, 1.0), ect, 0) == "reached"
    assert goals.verdict(goals.UNLABELLED, runs(0.7, 0.8), ect, 0) == "missed: half-way ≤ 0.7"
    assert goals.verdict(goals.BEST, runs(0.7, 0.6), ect, 0) == "missed: 1 step ≤ 0.6"


def test_the_smoother_schedule_has_the_table_of_its_record() -> None:
    import smoother

    assert place(smoother.PAGE, "smoother") == smoother.table()


def test_at_equal_distance_a_run_on_the_bases_line_has_no_more() -> None:
    import memorisation

    def run(*points: tuple[float, float]) -> dict:
        return {"curve": [{"steps_1": {"frechet_train": x, "memorisation": y}} for x, y in points]}

    base = run((100.0, 3.0), (10.0, 2.0), (1.0, 1.0))
    on_it = run((31.622777, 2.5), (0.1, 7.0))  # the second lies beyond the base
    assert memorisation.at_equal_distance(on_it, base, memorisation.nearest) == pytest.approx(0, abs=1e-6)
    above = run((31.622777, 2.75), (3.1622777, 1.6))
    assert memorisation.at_equal_distance(above, base, memorisation.nearest) == pytest.approx(0.175, abs=1e-6)


def test_figures_are_those_of_the_records() -> None:
    import figures

    for name, figure in figures.FIGURES.items():
        drawn = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
        assert numbers(drawn) == numbers(figure()), "python benchmarks/figures.py"


def numbers(svg: str) -> list[str]:
    """The coordinates of a plot's lines, to a tenth of a point."""
    paths = re.findall(r' d="([^"]*)"', svg)
    return [f"{float(x):.1f}" for path in paths for x in re.findall(r"-?\d+\.?\d*", path)]
