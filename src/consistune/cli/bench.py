"""consistune bench"""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from consistune.bench.report import in_columns, lines
from consistune.cli.common import Screen
from consistune.errors import UserError
from consistune.system.files import write_atomically
from consistune.system.host import machine


def run(out: Path | None, threads: int | None) -> None:
    """Measure, print the table, and write it as JSON where a file is named."""
    if threads is not None:
        if threads < 1:
            raise UserError(f"{threads} threads", "--threads", "use at least 1")
        torch.set_num_threads(threads)
    found = []
    with Screen() as screen, screen.bar("measuring", 1) as bar:
        for line in lines():
            found.append(line)
            bar.advance(0, f"{line.section}: {line.what}")
    about = machine()
    print(in_columns(found))
    print(", ".join(f"{name} {value}" for name, value in about.items() if value))
    if out is not None:
        write_atomically(
            out, json.dumps({"machine": about, "lines": [asdict(line) for line in found]}, indent=1) + "\n"
        )
