"""Mutated checkpoints, and a worker that reads them under watch.

    python -m tests.attack.mutants SHARED SEED START COUNT        prints a JSON line a file

Each file is a genuine checkpoint (the parity fixtures, and a torch archive) or a hostile one after one to
four mutations: flipped bytes, truncation, opcodes and hostile fragments inserted, pieces cut, doubled or
taken from another file, lengths made enormous. Half of the positions are those of opcodes, where they hurt
most. Mutation i depends on i and the seed alone. The worker reads each file in full (`load_checkpoint`, to
the built network) with an audit hook that records whatever is executed, imported or written, 5 s of the
processor, and 1 GB of memory for data. Hook and limit cannot be taken back, so the worker has a process of
its own.
"""

import io
import json
import pickletools
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from consistune.errors import UserError
from consistune.interop.checkpoints import load_checkpoint

SECONDS, BYTES = 5, 1 << 30
FRAGMENTS = [
    b"cposix\nsystem\n(X\x04\x00\x00\x00truetR",
    b"\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R",
    b"\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R",
    b"\x8c\x08builtins\x8c\x07getattr\x93h\x00\x8c\x09__class__\x86R",
    b"(iposix\nsystem\n",
    b"(cposix\nsystem\nX\x04\x00\x00\x00trueo",
    b"\x82\x01",
    b"Px\n",
    b"X\x01\x00\x00\x00xQ",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"B\xff\xff\xff\xff",
    b"\x8b\xff\xff\xff\x7f",
    b"\x8a\xff",
    b"r\xff\xff\xff\xff",
    b"\x95\xff\xff\xff\xff\xff\xff\xff\xff",
    b"h\x00\x86" * 50,
    b"}\x94" * 1000,
    b"(" * 1000,
    b"K\xff\x85R",
    b"J\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"R",
    b"b",
    b"\x81",
    b"\x93",
    b"0",
    b"1",
    b".",
]
EVENTS = ("exec", "compile", "marshal.", "pickle.", "ctypes.", "subprocess.", "socket.", "pty.", "shutil.")
EVENTS += ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.remove", "os.rename")
EVENTS += ("os.mkdir", "os.link", "os.symlink", "os.chmod")


def corpus(shared: Path) -> list[bytes]:
    """What is mutated: the fixtures, and a state dict as torch saves it."""
    parity = shared / "parity"
    files = sorted((parity / "networks").glob("*.pkl")) + sorted((parity / "malicious").iterdir())
    buffer = io.BytesIO()
    torch.save(load_checkpoint(files[0]).state_dict(), buffer)
    return [*(path.read_bytes() for path in files), buffer.getvalue()]


def places(data: bytes) -> list[int]:
    """Where opcodes stand, as far as the file can be taken apart."""
    found = []
    try:
        for _, _, position in pickletools.genops(data):
            found.append(position or 0)
    except Exception:
        found.append(0)
    return found


def mutated(index: int, seed: int, files: list[bytes], opcodes: list[list[int]]) -> bytes:
    chance = random.Random(f"{seed}/{index}")
    which = chance.randrange(len(files))
    data = bytearray(files[which])
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.choice(opcodes[which]) if chance.random() < 0.5 else chance.randrange(len(data) + 1)
        at = min(at + chance.choice((0, 0, 1, 2, 5)), len(data))
        span = chance.choice((1, 2, 4, 8, 64, 1024))
        match chance.randrange(8):
            case 0:
                for position in range(at, min(at + chance.randint(1, 8), len(data))):
                    data[position] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                del data[at : len(data) if chance.random() < 0.5 else at + span]
            case 3:
                data[at:at] = chance.choice(FRAGMENTS)
            case 4:
                data[at:at] = bytes([chance.choice(pickletools.opcodes).code.encode("latin-1")[0]])
            case 5:
                data[at:at] = data[at : at + span]
            case 6:
                other = files[chance.randrange(len(files))]
                start = chance.randrange(len(other))
                data[at:at] = other[start : start + span]
            case 7:
                data[at + 1 : at + 5] = chance.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"))
    return bytes(data)


class TooSlow(BaseException):
    """Five seconds of the processor are over."""


def work(shared: Path, seed: int, start: int, count: int) -> None:
    """One worker: a JSON line a file."""
    files = corpus(shared)
    opcodes = [places(data) for data in files]
    seen: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching:
            return
        if event == "import" and arguments[0] not in sys.modules:
            seen.append(f"import {arguments[0]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & 3:
            seen.append(f"open for writing {arguments[0]!r}")
        elif event.startswith(EVENTS):
            seen.append(event)

    def alarm(number: int, frame: object) -> None:
        del number, frame
        raise TooSlow

    signal.signal(signal.SIGPROF, alarm)
    load_checkpoint(next(iter(sorted((shared / "parity" / "networks").glob("*.pkl")))))
    sys.addaudithook(hook)
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for index in range(start, start + count):
            path.write_bytes(mutated(index, seed, files, opcodes))
            seen.clear()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            began, watching = time.process_time(), True
            try:
                load_checkpoint(path)
                outcome = "loaded"
            except UserError as error:
                outcome = "refused" if str(error).isprintable() else "refused in more than a line"
            except TooSlow:
                outcome = "hung"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {str(error)[:100]}"
            watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            result = {"index": index, "outcome": outcome, "seconds": time.process_time() - began}
            print(json.dumps(result | {"peak_mib": peak_mib(), "seen": list(seen)}), flush=True)


def peak_mib() -> int:
    """The most memory of this program; getrusage would count that of the process which started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
