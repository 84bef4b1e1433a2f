"""`consistune bench`: measure speed and memory on this machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Option

from consistune.cli.options import check_at_least
from consistune.cli.screen import Screen


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

    check_at_least(1, threads, "--threads")
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
