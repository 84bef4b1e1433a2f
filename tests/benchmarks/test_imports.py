"""What a benchmark imports from the package or from another benchmark is there; nothing is executed."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


@cache
def names_of(file: Path) -> set[str]:
    """The names that a module, or a package with its modules, can be asked for."""
    found = {path.stem for path in file.parent.iterdir()} if file.name == "__init__.py" else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def wanted(script: Path) -> Iterator[tuple[Path, str]]:
    """(file of a module of ours, name) of each `from module import name`."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            place = node.module.replace(".", "/")
            for folder in (ROOT / "benchmarks", ROOT / "src", ROOT):
                for file in (folder / f"{place}.py", folder / place / "__init__.py"):
                    if file.is_file():
                        yield from ((file, alias.name) for alias in node.names)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_benchmark_imports_is_there(script: Path) -> None:
    missing = [f"{name} of {file}" for file, name in wanted(script) if name not in names_of(file)]
    assert not missing
