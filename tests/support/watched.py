"""Reads files and records every side effect; tests run it in a process of its own.

python -m tests.support.watched GENUINE… -- FILE… prints a JSON line for each FILE:
the outcome, the side effects, seconds of the processor, additional MiB.
"""

import json
import resource
import sys
import time

EVENTS = (
    "compile",
    "exec",
    "import",
    "marshal.",
    "pickle.find_class",
    "code.__new__",
    "function.__new__",
    "ctypes.",
    "os.",
    "shutil.",
    "subprocess.",
    "pty.",
    "socket.",
    "tempfile.",
    "urllib.",
    "webbrowser.",
    "sys._getframe",
    "sys.addaudithook",
    "signal.",
)
HARMLESS = ("os.fspath", "os.listdir", "os.scandir")
seen: list[str] = []
watching = False


def hook(event: str, arguments: tuple[object, ...]) -> None:
    if not watching:
        return
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = isinstance(flags, int) and flags & 0o3 != 0
        if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
            seen.append(f"open for writing: {arguments[0]!r}")
    elif event == "import":
        if arguments[0] not in sys.modules:
            seen.append(f"import {arguments[0]}")
    elif event.startswith(EVENTS) and event not in HARMLESS:
        seen.append(f"{event} {str(arguments)[:100]}")


def main(genuine: list[str], files: list[str]) -> None:
    global watching
    from consistune.errors import UserError
    from consistune.interop.checkpoints import load_checkpoint

    for path in genuine:
        load_checkpoint(path)  # everything that reading imports is imported now
    sys.addaudithook(hook)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in files:
        seen.clear()
        began = time.process_time()
        watching = True
        try:
            load_checkpoint(path)
            outcome = "loaded"
        except UserError as error:
            outcome = str(error)
        except BaseException as error:
            outcome = f"!{type(error).__name__}: {error}"
        watching = False
        used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
        result = {"outcome": outcome, "seen": list(seen), "seconds": time.process_time() - began, "mib": used}
        print(json.dumps({"file": path} | result))


if __name__ == "__main__":
    split = sys.argv.index("--")
    main(sys.argv[1:split], sys.argv[split + 1 :])
