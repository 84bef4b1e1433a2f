"""What the benchmarks share: sections chosen on the command line, results as JSON, tables in pages of docs/.

    python benchmarks/SCRIPT.py [SECTION …] [--only PART …] [--rounds N] [--threads N] [--quick] [--out DIR]

A section measures the content of one file of benchmarks/results. What a run measures replaces those entries
of the file; the others stay. --quick takes the smallest sizes and writes into a temporary folder.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from consistune.system.files import write_atomically
from tables import fill

FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
"""With this environment variable glibc returns a tensor's memory to the system as soon as it is freed.
Without it glibc keeps freed blocks for later use, and they count in the peak."""
RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
Tables = dict[tuple[str, str], Callable[[Record], str]]
"""(page of docs/, name of the table's place in it) → the table, made from the file's content."""


@dataclass(frozen=True)
class Section:
    measure: Callable[..., Record]
    file: str
    parts: tuple[str, ...]
    rounds: int
    threads: int
    tables: Tables

    def run(self, given: argparse.Namespace) -> None:
        """Measure the chosen parts; write the file after each, and the tables at the end."""
        torch.set_num_threads(given.threads or self.threads)
        given = argparse.Namespace(
            **vars(given) | {"rounds": given.rounds or (1 if given.quick else self.rounds)}
        )
        path = given.out / self.file
        record = json.loads(path.read_text()) if path.exists() else {}
        parts = [part for part in self.parts if part in (given.only or self.parts)]
        for part in parts if self.parts else [None]:
            given.record = record
            measured = self.measure(given) if part is None else self.measure(given, part)
            for key, value in measured.items():
                record[key] = {**record.get(key, {}), **value} if isinstance(value, dict) else value
            write_atomically(path, json.dumps(record, indent=1) + "\n")
            print(json.dumps(measured, indent=1), flush=True)
        if given.out == RESULTS:
            for place, table_of in self.tables.items():
                fill(*place, table_of(record))


class Benchmark:
    """The sections of one script, and its command line. A script adds options through `parser`."""

    def __init__(self, description: str | None) -> None:
        self.sections: dict[str, Section] = {}
        self.parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def section(
        self,
        file: str,
        parts: Iterable[str] = (),
        rounds: int = 3,
        threads: int = 1,
        tables: Tables | None = None,
    ) -> Callable[[Callable[..., Record]], Callable[..., Record]]:
        """Register `measure(options)` or, with parts, `measure(options, part)`, which returns entries.

        `options.record` is the file's content so far.
        """

        def register(measure: Callable[..., Record]) -> Callable[..., Record]:
            name = measure.__name__.replace("_", "-")
            self.sections[name] = Section(measure, file, tuple(parts), rounds, threads, tables or {})
            return measure

        return register

    def main(self) -> None:
        add, names = self.parser.add_argument, list(self.sections)
        add("section", nargs="*", metavar="SECTION", help=f"{', '.join(names)}; all by default")
        add(
            "--only",
            nargs="+",
            metavar="PART",
            help="; ".join(f"{n}: {s.parts}" for n, s in self.sections.items()),
        )
        add("--rounds", type=int, help="timed calls of each candidate")
        add("--threads", type=int, help="torch's threads")
        add("--quick", action="store_true", help="the smallest size of everything, into a temporary folder")
        add("--out", type=Path, default=RESULTS, help="the folder of the results")
        given = self.parser.parse_args()
        chosen = [self.sections.get(name) for name in given.section or names]
        if given.only and not given.section:
            chosen = [section for section in chosen if section and {*section.parts} & {*given.only}]
        known = {part for section in chosen if section for part in section.parts}
        if None in chosen or not set(given.only or ()) <= known:
            self.parser.error(f"no such section or part; sections: {names}, parts: {sorted(known)}")
        if given.quick and given.out == RESULTS:
            given.out = Path(tempfile.mkdtemp(prefix="benchmarks-"))
        for section in filter(None, chosen):
            section.run(given)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def shown(values: Sequence[float] | dict[str, float], digits: int = 3, to: str = "…") -> str:
    """Median (least … most)."""
    numbers = values if isinstance(values, dict) else spread(values)
    return "{} ({} {to} {})".format(*(f"{number:,.{digits}f}" for number in numbers.values()), to=to)


def clock() -> Callable[[], float]:
    """The process's CPU time on one thread; wall-clock time on several, whose CPU times would add up."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def in_pair(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(rank, *arguments)` of two processes with one thread each, joined by gloo; results as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_paired, (folder, function, arguments), nprocs=2)
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(2)]


def _paired(rank: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    result = function(rank, *arguments)
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()
