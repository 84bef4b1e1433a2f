"""`consistune doctor`: print what this machine has for the package."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Option

MARKS = {"good": ("ok", "green"), "missing": ("–", "yellow"), "problem": ("PROBLEM", "bold red")}
"""State of a finding → the mark and its style."""


def doctor(
    as_json: Annotated[bool, Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show versions, devices, precisions and extras, and what is missing; exit status 1 for a problem."""
    from consistune.doctor import as_dict, examine, works

    findings = examine()
    if as_json:
        print(json.dumps(as_dict(findings), indent=2))
    else:
        table = Table("", "", "", "", show_header=False, box=None, pad_edge=False)
        table.columns[1].no_wrap = True
        section = ""
        for finding in findings:
            mark, style = MARKS[finding.state]
            first = finding.section if finding.section != section else ""
            section = finding.section
            table.add_row(first, finding.name, Text(mark, style=style), Text(finding.value, overflow="fold"))
        Console(soft_wrap=True).print(table)
    if not works(findings):
        raise typer.Exit(1)
