"""The layers of the house: a room imports only rooms below it, and core imports torch alone."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "consistune"
ORDER = (
    ("errors",),
    ("system", "core"),
    ("pickles", "pages", "nn"),
    ("data", "train", "metrics", "interop"),
    ("models", "analyze"),
    ("recipe", "doctor", "bench"),
    ("evaluate",),
    ("reproduce",),
    ("cli",),
)
"""From the foundation up. Rooms of one layer never import each other."""


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "consistune" and len(parts) > 1 else ""


def imports(path: Path) -> list[str]:
    """Modules that a file imports, wherever in it the statement stands; type-checking blocks too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += names if node.module == "consistune" else [str(node.module)]
    return found


FILES = sorted(
    path for path in SOURCE.rglob("*.py") if path.name != "__init__.py" and path.stem != "__main__"
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    level = next((i for i, rooms in enumerate(ORDER) if here in rooms), None)
    assert level is not None, f"{here} has no place in the layers"
    below = {name for rooms in ORDER[:level] for name in rooms} | {here, ""}
    for module in imports(path):
        if module.split(".")[0] == "consistune":
            assert room(module) in below, f"{here} must not import {module}"


@pytest.mark.parametrize("path", sorted((SOURCE / "core").rglob("*.py")), ids=lambda p: p.name)
def test_core_imports_torch_and_nothing_else(path: Path) -> None:
    for module in imports(path):
        assert module.split(".")[0] in {"torch", *sys.stdlib_module_names} or module.startswith(
            "consistune.core"
        )
