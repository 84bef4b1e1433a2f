"""consistune doctor"""

import json

from rich.console import Console
from rich.table import Table
from rich.text import Text

from consistune import doctor

MARKS = {"good": ("ok", "green"), "missing": ("–", "yellow"), "problem": ("PROBLEM", "bold red")}


def run(as_json: bool) -> int:
    """Print what was found; status 1 where the program cannot work."""
    findings = doctor.examine()
    if as_json:
        print(json.dumps(doctor.as_json(findings), indent=2))
        return 0 if doctor.works(findings) else 1
    table = Table("", "", "", "", show_header=False, box=None, pad_edge=False)
    table.columns[1].no_wrap = True
    section = ""
    for finding in findings:
        word, style = MARKS[finding.state]
        first = finding.section if finding.section != section else ""
        section = finding.section
        table.add_row(first, finding.name, Text(word, style=style), Text(finding.value))
    Console(soft_wrap=True).print(table)
    return 0 if doctor.works(findings) else 1
