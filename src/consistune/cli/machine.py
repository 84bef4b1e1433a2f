"""`consistune doctor` and `consistune bench`: what this machine has for the package, and how fast it is."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Option

from consistune.cli.screen import Screen

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


def bench(
    json_file: Annotated[
        Path | None, Option("--json", help="Also write the table to this JSON file.")
    ] = None,
    threads: Annotated[int | None, Option(help="PyTorch's threads; default: its own choice.")] = None,
) -> None:
    """Measure how fast this machine trains and samples, against a plain loop and diffusers; some minutes."""
    import torch

    from consistune.bench.report import in_columns, lines
    from consistune.system.files import write_atomically
    from consistune.system.host import machine
    from consistune.system.own import check_file

    if json_file is not None:
        check_file(json_file, "--json", ("machine", "lines"))
    if threads is not None:
        torch.set_num_threads(threads)
    measured = []
    with Screen() as screen, screen.bar("measuring", 1) as bar:
        for line in lines():
            measured.append(line)
            bar.advance(0, f"{line.section}: {line.what}")
    host = machine()
    print(in_columns(measured))
    print(", ".join(f"{name} {value}" for name, value in host.items() if value))
    if json_file is not None:
        table = {"machine": host, "lines": [asdict(line) for line in measured]}
        write_atomically(json_file, json.dumps(table, indent=1) + "\n")
