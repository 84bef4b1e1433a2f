"""Every numeric option of every command refuses what is no number in its range, and names itself."""

from typing import Any

import pytest
import typer

from consistune.cli.main import app, explain
from consistune.cli.numbers import check_all_numbers, check_number
from consistune.errors import UserError


def commands(command: Any, *names: str) -> list[tuple[tuple[str, ...], Any]]:
    below = getattr(command, "commands", {})
    own = [] if below else [(names, command)]
    return own + [found for name, part in below.items() for found in commands(part, *names, name)]


COMMAND = typer.main.get_command(app)
check_all_numbers(COMMAND)
NUMERIC = [
    (names, parameter.opts[0], kind)
    for names, command in commands(COMMAND)
    for parameter in command.params
    for kind in ("int", "float")
    if parameter.param_type_name == "option" and kind in str(parameter.type_descriptor.annotation)
]


def test_the_numeric_options_are_found() -> None:
    options = {option for _, option, _ in NUMERIC}
    assert {"--steps", "--eta", "--guidance", "--batch", "--seed", "--held-out", "--std"} <= options


@pytest.mark.parametrize(("names", "option", "kind"), NUMERIC, ids=str)
def test_an_odd_number_is_refused_by_name(names: tuple[str, ...], option: str, kind: str) -> None:
    for value in ("-1000000", "nan", "1e11" if kind == "int" else "inf", "-3"):
        if kind == "float" and value in ("-3", "-1000000") and option == "--std":
            continue  # the averages' own rule (training.posthoc)
        if value == "-3" and option in ("--guidance", "--omega"):
            continue
        with pytest.raises(Exception) as error:  # noqa: PT011 - the parser's or ours
            COMMAND([*names, option, value, *["x"] * 3], standalone_mode=False)
        status, line = explain(error.value)
        assert status == 2
        assert option in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", 0),
        ("--steps", -2),
        ("--batch", 10**11),
        ("--guidance", float("nan")),
        ("--eta", 1.5),
        ("--seeds", 0),
        ("--workers", 0),
        ("--threads", 0),
        ("--allow-missing", -1),
    ],
)
def test_numbers_out_of_range(option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{option}: "):
        check_number(option, value)


def test_an_option_does_not_take_the_next_one_as_its_value() -> None:
    with pytest.raises(UserError, match="--out: has no value: --dry-run is an option"):
        COMMAND(["train", "digits-edm", "--out", "--dry-run"], standalone_mode=False)
