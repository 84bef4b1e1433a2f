"""The documentation: no link is broken, every page has its place on the site, every command exists."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml

from consistune.cli.main import app
from consistune.recipe import read_recipe, shipped_recipes
from tests.support.prose import PAGES as PROSE
from tests.support.prose import ease

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_link_is_broken(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor and path.suffix == ".md":
            assert anchor[1:] in anchors(path), f"{page.name}: {target}{anchor}"


def test_every_page_is_on_the_site() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE))
    assert yaml.safe_load(text)["nav"]
    assert listed == {
        str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")
    }


def test_every_command_that_a_page_names_exists() -> None:
    program = typer.main.get_command(app)
    groups = program.commands
    for page in PAGES:
        for block in re.findall(
            r"```\n(.*?)```|`(consistune [^`]+)`", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            for line in "".join(block).splitlines():
                words = re.match(
                    r"(?:torchrun .*-m )?consistune ([a-z][a-z-]*)(?: ([a-z]+))?(.*)", line.strip()
                )
                if words is None:
                    continue
                command = groups.get(words[1])
                assert command is not None, f"{page.name}: {line}"
                inner = getattr(command, "commands", {}).get(words[2])
                known = {opt for p in (inner or command).params for opt in (*p.opts, *p.secondary_opts)}
                for option in re.findall(r"(?<!\S)--[a-z-]+", words[3].split("#")[0]):
                    assert option in known | {"--help", "--debug", "--version"}, f"{page.name}: {line}"


LONG = {
    "METHOD.md": "the specification: every symbol counts as a word, and the code cites its sections",
    "METHOD-family.md": "the same",
    "commands.md": "a generated reference",
    "networks.md": "a generated reference",
}
"""Pages that may be longer than 1,200 words or have longer sentences, and why."""


@pytest.mark.parametrize("page", PROSE, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_short_and_plain(page: Path) -> None:
    found = ease(page.read_text(encoding="utf-8"))
    assert found.cell <= 40, "a table cell is no place for a paragraph"
    if page.name not in LONG:
        assert found.words <= 1200, "split the page"
        assert found.sentence <= 22, "shorten the sentences"


def commands(text: str) -> list[str]:
    """The lines of the code blocks that call the program, without comments; continued lines are joined."""
    blocks = re.findall(r"```(?:bash|sh)?\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.split("consistune ", 1)[1].split("  #")[0].strip()
        for line in lines
        if re.match(r"(torchrun .*-m )?consistune ", line.strip())
    ]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if commands(p.read_text(encoding="utf-8"))], ids=lambda p: str(p.name)
)
def test_every_command_of_a_page_parses_and_its_keys_exist(page: Path) -> None:
    """Also where it needs files that are not here: values have their types, keys exist."""
    program = typer.main.get_command(app)
    for line in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(re.sub(r"  +[a-z→(].*$", "", line))
        command = program.commands.get(words[0])
        assert command is not None, line
        words = words[1:]
        while isinstance(command, click.Group):
            command, words = command.commands[words[0]], words[1:]
        try:
            command.make_context("consistune", list(words), resilient_parsing=False)
        except click.exceptions.BadParameter as error:
            if "does not exist" not in error.message:  # a path that is not here is no mistake
                raise
        if command.name == "train" and words[0] in shipped_recipes():
            read_recipe(words[0], [word for word in words[1:] if "=" in word and not word.startswith("-")])
