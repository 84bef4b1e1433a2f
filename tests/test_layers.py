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
    ("data", "training", "metrics", "interop"),
    ("models", "analyze"),
    ("recipe", "doctor", "bench"),
    ("evaluation",),
    ("reproduce", "front"),
    ("create",),
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


# The whole house -------------------------------------------------------------------------------------------

ROOMS, FLOORS, ARROWS = 23, 10, 120
"""At most so many rooms (folders and loose files of the package, and benchmarks), floors, and pairs of rooms
of which one imports the other."""
FILE_LINES, FUNCTION_LINES = 400, 60
BENCHMARKS = SOURCE.parents[1] / "benchmarks"


def house() -> dict[str, set[str]]:
    """room → the other rooms that it imports."""
    loose = {path.stem for path in SOURCE.glob("*.py")}
    rooms = loose | {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    arrows: dict[str, set[str]] = {name: set() for name in (*rooms, "benchmarks")}
    for path in (*SOURCE.rglob("*.py"), *BENCHMARKS.glob("*.py")):
        inside = path.is_relative_to(SOURCE)
        here = path.relative_to(SOURCE).parts[0].removesuffix(".py") if inside else "benchmarks"
        for module in imports(path):
            if module.split(".")[0] == "consistune":
                arrows[here].add(name if (name := room(module)) in rooms else "__init__")
    return {here: there - {here} for here, there in arrows.items()}


def height(rooms: dict[str, set[str]], name: str, above: tuple[str, ...] = ()) -> int:
    """The floor of a room: one above the highest that it imports. Fails where rooms import in a circle."""
    assert name not in above, f"a circle of imports: {' → '.join((*above, name))}"
    return 1 + max((height(rooms, below, (*above, name)) for below in rooms[name]), default=0)


def test_the_house_is_no_larger_than_planned() -> None:
    rooms = house()
    assert len(rooms) <= ROOMS, sorted(rooms)
    assert max(height(rooms, name) for name in rooms) <= FLOORS
    assert sum(map(len, rooms.values())) <= ARROWS


def test_no_files_import_each_other_in_a_circle() -> None:
    names = {"consistune." + ".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in FILES}

    def file_of(module: str) -> str | None:
        return next((name for name in (module, module.rpartition(".")[0]) if name in names), None)

    files: dict[str, set[str]] = {}
    for name, path in names.items():
        below: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                below |= {f"{node.module}.{alias.name}" for alias in node.names}
        files[name] = {found for module in below if (found := file_of(module)) is not None} - {name}
    known: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle of imports: {' → '.join((*above, name))}"
        if name not in known:
            known.add(name)
            for below in files[name]:
                visit(below, (*above, name))

    for name in files:
        visit(name, ())


@pytest.mark.parametrize(
    "path", sorted((*SOURCE.rglob("*.py"), *BENCHMARKS.glob("*.py"))), ids=lambda path: path.name
)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            assert node.end_lineno - node.lineno < FUNCTION_LINES, node.name
