"""Imports go one way: modules of gatedops have no circles, and its folders have an order."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# These modules of the package's own folder put it together; the others there are its foundation.
ON_TOP = ("gatedops", "gatedops.__main__", "gatedops.dispatch", "gatedops.kernels", "gatedops.reference_conv")
FOUNDATION = "(the package's own folder)"
# For each folder, the folders that its modules may import from beside the foundation.
MAY_IMPORT = {
    FOUNDATION: {"ops"},
    "ops": set(),
    "backends": set(),
    "portable": {"ops"},
    "reference": {"ops"},
    "triton": {"ops"},
    "trace": {"ops"},
    "nn": {"ops", "trace"},
    "stats": {"ops", "trace"},
    "path_kernels": {"ops", "trace", "nn"},
    "optim": {"ops", "trace", "path_kernels"},
    "operators": {"ops", "trace", "path_kernels"},
    "solve": {"ops", "operators"},
    "sklearn": {"ops", "trace", "path_kernels", "operators", "solve"},
    "gpytorch": {"ops", "trace", "path_kernels", "operators"},
    "selftest": {"ops", "trace", "path_kernels", "portable", "backends"},
    "commands": {"backends", "selftest"},
}


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yields the statements that run when the module is imported, or that type checkers read: all outside functions."""
    for statement in body:
        yield statement
        if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from statements(getattr(statement, field, []))


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "gatedops").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: frozenset[str]) -> set[str]:
    """Returns the known modules that a module imports by name. A package imported for a module in it does not count."""
    found = set()
    for statement in statements(ast.parse(source).body):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= names if names <= known else {statement.module or "", *(names & known)}
    return found & known


@cache
def graph() -> dict[str, set[str]]:
    # gatedops._C is compiled, so an import of it from the package imports nothing else of the package.
    known = frozenset(modules()) | {"gatedops._C"}
    return {name: imported(path.read_text(), known) - {"gatedops._C"} for name, path in modules().items()}


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Returns modules each of which imports the next, and the last the first; empty if there are none."""
    done: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for other in sorted(imports[module]):
            if found := search(other, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in imports if (found := search(module, []))), [])


def folder_of(module: str) -> str:
    parts = modules()[module].relative_to(ROOT / "gatedops").parts
    return parts[0] if len(parts) > 1 else FOUNDATION


def test_no_modules_import_each_other():
    assert circle_in(graph()) == []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_between_folders_go_one_way(folder):
    wrong = [
        f"{module} imports {other}"
        for module in graph()
        if folder_of(module) == folder and module not in ON_TOP
        for other in graph()[module]
        if other in ON_TOP or folder_of(other) not in {folder, FOUNDATION} | MAY_IMPORT[folder]
    ]
    assert wrong == []


def test_every_folder_has_its_place():
    assert {folder_of(module) for module in modules()} == set(MAY_IMPORT)


def test_a_folder_may_import_from_those_before_it_alone():
    """The table has no circle except that of ops and the foundation, whose modules have no circle."""
    assert circle_in({folder: others for folder, others in MAY_IMPORT.items() if folder != FOUNDATION}) == []


def test_circles_are_found():
    known = frozenset(["gatedops.a", "gatedops.b", "gatedops.c"])
    imports = {
        "gatedops.a": imported("if TYPE_CHECKING:\n    from gatedops.b import f", known),
        "gatedops.b": imported("try:\n    import gatedops.c\nexcept ImportError:\n    pass", known),
        "gatedops.c": imported("def f():\n    import gatedops.b\n\nfrom gatedops import a", known),
    }
    assert circle_in(imports) == ["gatedops.a", "gatedops.b", "gatedops.c"]
    imports["gatedops.c"] = imported("def f():\n    from gatedops import a", known)
    assert circle_in(imports) == []
