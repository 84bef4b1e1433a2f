"""The program on a system without what only POSIX has: Windows, for one process."""

import subprocess
import sys
from pathlib import Path

CODE = """
import builtins, importlib, os, pathlib, pkgutil, tempfile
original = builtins.__import__
POSIX = {"fcntl", "resource", "pwd", "grp", "termios"}
def restricted(name, globals=None, *rest, **keys):
    if name in POSIX and (globals or {}).get("__name__", "").startswith("consistune"):
        raise ImportError(name)
    return original(name, globals, *rest, **keys)
builtins.__import__ = restricted
for name in ("pwrite", "pread"):
    delattr(os, name)
import consistune
for module in pkgutil.walk_packages(consistune.__path__, "consistune."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in ("gradio", "diffusers"):  # extras
                raise
from consistune.data.prepare.run import PrepareOptions, prepare
from tests.support.makers import edm_zip, pixels
with tempfile.TemporaryDirectory() as folder:
    source = edm_zip(pathlib.Path(folder) / "images.zip", pixels(8, 8, 8), [0] * 8)
    prepare(source, pathlib.Path(folder) / "set", PrepareOptions())
print("done")
"""


def test_every_module_is_imported_and_a_set_prepared_without_posix() -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.splitlines()[-1:] == ["done"], done.stderr[-2000:]
