"""The program on a system without what only POSIX has: Windows, for one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import builtins, importlib, os, pathlib, pkgutil, tempfile
import torch
original = builtins.__import__
POSIX = {"fcntl", "resource", "pwd", "grp", "termios"}
def restricted(name, globals=None, *rest, **keys):
    if name in POSIX and (globals or {}).get("__name__", "").startswith("consistune"):
        raise ImportError(name)
    return original(name, globals, *rest, **keys)
builtins.__import__ = restricted
for name in ("pwrite", "pread", "sysconf"):
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
from consistune.core.posterior.bank import make_bank
from consistune.core.posterior.mean import Reference
make_bank(Reference.ungrouped(torch.zeros(8, 1, 8, 8, dtype=torch.uint8)), "cpu")
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


@pytest.mark.parametrize(
    ("system", "own", "found"), [("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, "None")]
)
def test_on_a_mac_the_cpu_computes_what_the_device_lacks(system: str, own: str | None, found: str) -> None:
    name = "PYTORCH_ENABLE_MPS_FALLBACK"
    code = f"import os, sys; sys.platform = {system!r}; import consistune; print(os.environ.get({name!r}))"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {} if own is None else {name: own}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == found
