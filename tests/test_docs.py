"""The documentation: no link is broken, every page has its place on the site, every command exists."""

import re
from pathlib import Path

import pytest
import typer
import yaml

from consistune.cli.main import app

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
