"""The order of the rooms, file by file: each imports only what stands above it, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import pytest_llminfer

PACKAGE = Path(pytest_llminfer.__file__).parent
ORDER = (
    ("spec", "verdict", "errors", "hardware"),
    ("observations",),
    ("stats",),
    ("datasets",),
    ("checkpoints",),
    ("models",),
    ("numerics",),
    ("predict",),
    ("worker",),
    ("engines",),
    ("baselines",),
    ("families",),
    ("report",),
    ("plugin",),
    ("cli",),
)
"""From top to bottom, as docs/architecture.md draws it."""
WORKER_MAY = frozenset({"spec", "errors", "checkpoints", "worker"})
LINKS = ("suites", "bundled_baselines")
"""Folders of the repository that the package holds by a link."""


def modules(package: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name below it."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[0] not in LINKS:
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports anywhere, for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "pytest_llminfer":
            module = node.module.removeprefix("pytest_llminfer").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                found.add(inner if inner in known else module)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("pytest_llminfer.") for alias in node.names if alias.name.startswith("pytest_llminfer.")
            }
    return {module for module in found if module in known and module}


def edges(package: Path) -> dict[str, set[str]]:
    known = modules(package)
    return {name: imported(path, known) - {name} for name, path in known.items() if name}


def violations(graph: dict[str, set[str]]) -> list[str]:
    """Imports of what stands below the importer, and of what a worker does not carry with it."""
    place = {room: number for number, rooms in enumerate(ORDER) for room in rooms}
    found = []
    for module, targets in graph.items():
        room = module.partition(".")[0]
        for target in sorted(targets):
            other = target.partition(".")[0]
            if place[other] > place[room] or (room == "worker" and other not in WORKER_MAY):
                found.append(f"{module} imports {target}")
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes each of which leads back to itself (Tarjan's strongly connected components, of two nodes or more)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for target in graph.get(node, set()):
            if target not in number:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], number[target])
        if low[node] == number[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in number:
            visit(node)
    return found


def folders(graph: dict[str, set[str]], package: Path) -> dict[str, set[str]]:
    """The same graph between folders."""
    known = modules(package)
    of = {name: str(path.parent.relative_to(package)) for name, path in known.items()}
    found: dict[str, set[str]] = defaultdict(set)
    for module, targets in graph.items():
        found[of[module]] |= {of[target] for target in targets} - {of[module]}
    return dict(found)


def test_every_room_stands_in_the_order() -> None:
    rooms = {module.partition(".")[0] for module in modules(PACKAGE) if module}
    assert rooms == {room for group in ORDER for room in group}


def test_each_file_imports_only_what_stands_above_it() -> None:
    assert violations(edges(PACKAGE)) == []


def test_no_file_leads_back_to_itself() -> None:
    assert circles(edges(PACKAGE)) == []


def test_no_folder_leads_back_to_itself() -> None:
    assert circles(folders(edges(PACKAGE), PACKAGE)) == []


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package with an import upwards, one that a worker may not make, and a circle of two files in two folders."""
    files = {
        "spec.py": "from pytest_llminfer.report.table import render",
        "report/table.py": "def render(): from pytest_llminfer.plugin.judge import Judge",
        "plugin/judge.py": "from pytest_llminfer.report import table",
        "worker/loop.py": "from pytest_llminfer.models.shape import ModelShape",
        "models/shape.py": "import json",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_what_breaks_the_order_is_found(small: Path) -> None:
    assert sorted(violations(edges(small))) == [
        "report.table imports plugin.judge",
        "spec imports report.table",
        "worker.loop imports models.shape",
    ]


def test_a_circle_is_found_between_files_and_between_folders(small: Path) -> None:
    assert circles(edges(small)) == [["plugin.judge", "report.table"]]
    assert circles(folders(edges(small), small)) == [["plugin", "report"]]
