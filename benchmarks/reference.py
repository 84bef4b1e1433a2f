"""The reference pages of docs/reference, from the code: the keys of recipes, and the commands.

python benchmarks/reference.py          writes the pages; tests/test_reference.py compares them
"""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from consistune.cli.main import app
from consistune.recipe.keys import Key, all_sections, keys_of, sources_of, word_of
from consistune.recipe.words import Recipe, section
from consistune.system.files import write_atomically
from consistune.training.optim import Optimizer
from consistune.training.options import TrainOptions

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
PAGES: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "run": (
        "Keys of a run",
        "Data, start, length, optimizer, averages. Further lists: [objectives](objectives.md), "
        "[times and estimators](times.md), [networks](networks.md). "
        "`consistune recipes show NAME` prints a whole recipe with the same words.",
        ("UntilRatio",),
        ("rate-schedule", "average", "target"),
    ),
    "objectives": (
        "Keys of objectives and losses",
        "The keys of an objective stand at the top of a recipe. "
        "A part is a section: `weight: {kind: snr-plus, sigma_data: 0.5}`.",
        ("Loss", "Mixture"),
        ("distance", "weight", "scale"),
    ),
    "times": (
        "Keys of noise, times and estimators",
        "What is drawn in a step, and what estimates the clean image. "
        "A part is a section: `gap: {kind: sigmoid, q: 2}`.",
        ("TruncatedPairs",),
        ("schedule", "pairs", "gap", "grid-size", "law", "time-law", "intervals", "estimator"),
    ),
    "networks": (
        "Keys of networks and preconditioning",
        "`network` is needed where a recipe starts from nothing. `precond` puts it into another form.",
        (),
        ("network", "precond"),
    ),
}
"""Page → title, first paragraph, the classes of one kind and the kinds of parts that it lists."""
TITLES = {"rate-schedule": "optimizer.lr_schedule", "average": "train.ema", "grid-size": "size"}
"""Kind of a part → the key under which it stands, where that is another word."""


def page(name: str) -> str:
    """A page of the keys of recipes."""
    title, about, single, parts = PAGES[name]
    lines = [f"# {title}", "", about, ""]
    found = list(all_sections())
    objectives = [part for of, part in found if of == "objective"]
    if name == "run":
        common = [key for key in keys_of(objectives[0]) if key.name in Recipe.model_fields]
        words = ", ".join(f"`{word_of(part)}`" for part in objectives)
        common = [replace(key, type=words) if key.name == "objective" else key for key in common]
        lines += [*titled("Every recipe", [], common), *titled("train", [], keys_of(section(TrainOptions)))]
        lines += titled("optimizer", [], keys_of(section(Optimizer)))
    if name == "objectives":
        for part in objectives:
            own = [key for key in keys_of(part) if key.name not in Recipe.model_fields]
            lines += titled(f"objective: {word_of(part)}", sources_of(part), own)
    for of, part in found:
        if of == "section" and word_of(part) in single:
            lines += titled(SECTIONS[word_of(part)], sources_of(part), keys_of(part))
    for kind in parts:
        for of, part in found:
            if of == kind:
                lines += titled(f"{TITLES.get(of, of)}: {word_of(part)}", sources_of(part), keys_of(part))
    return "\n".join(lines)


SECTIONS = {
    "UntilRatio": "train.precision with until_ratio",
    "Loss": "loss",
    "Mixture": "guidance of mean-velocity",
    "TruncatedPairs": "pairs of truncated",
}
"""Class of which there is one kind → where its section stands."""


def titled(title: str, sources: list[str], keys: Any) -> list[str]:
    """A heading and the table of its keys."""
    rows: list[Key] = list(keys)
    source = [", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in sources), ""] if sources else []
    if not rows:
        return [f"## {title}", "", *source, *([] if source else ["No keys.", ""])]
    table = ["| key | type | default | meaning |", "|---|---|---|---|"]
    table += [
        f"| `{row.name}` | {cell(row.type)} | {cell(row.default)} | {cell(row.meaning)} |" for row in rows
    ]
    return [f"## {title}", "", *source, *table, ""]


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands() -> str:
    """The page of the commands, from the program's own help."""
    lines = ["# Commands", "", ABOUT, ""]
    for name, command in walked("consistune", typer.main.get_command(app)):
        lines += [f"## {name}", "", first_paragraph(command.help), ""]
        rows = [
            f"| {parameter_name(one)} | {default_of(one)} | {cell(' '.join((one.help or '').split()))} |"
            for one in command.params
            if one.name != "help" and not one.hidden
        ]
        if rows:
            lines += ["| argument or option | default | meaning |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


ABOUT = (
    "`consistune COMMAND --help` prints the same. Exit status: 0 done; 1 failed, or a fault was found; "
    "2 the input is wrong, with one line that says what, where and how to mend it; 130 Ctrl-C. "
    "`consistune --debug COMMAND …` shows the traceback of an error; `consistune --version` the versions."
)


def walked(name: str, group: Any) -> Iterator[tuple[str, Any]]:
    """(words, command) of every command, in the order of the help."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walked(f"{name} {word}", command)
        else:
            yield f"{name} {word}", command


def first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def parameter_name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))


def default_of(parameter: Any) -> str:
    """The default as one types it; empty where the option is left out by default."""
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value is None or value is False or value == "" or callable(value) else f"`{value}`"


def pages() -> dict[Path, str]:
    """File → its content."""
    made = {FOLDER / f"{name}.md": page(name) for name in PAGES}
    return made | {FOLDER / "commands.md": commands()}


def main() -> None:
    for path, text in pages().items():
        write_atomically(path, text.rstrip() + "\n")
        print(f"{path}: {len(text.split()):,} words")


if __name__ == "__main__":
    main()
