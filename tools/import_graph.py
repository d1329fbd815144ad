"""What imports what in the package, and what breaks its order; draws the table of docs/architecture.md.

python tools/import_graph.py            # every import of a lower room, and every circle; status 1 where there is one
python tools/import_graph.py --write    # writes the table of docs/architecture.md anew
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "pytest_llminfer"
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- imports: begin -->", "<!-- imports: end -->"
ORDER = (
    ("spec", "verdict", "errors", "hardware", "printable"),
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
WORKER_MAY = frozenset({"spec", "errors", "printable", "checkpoints", "worker"})
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
    """Every module, and the others of the package that it imports."""
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


def rooms(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """Every room in the order, and the others that its files import, in the order too."""
    order = [room for group in ORDER for room in group]
    found: dict[str, set[str]] = {room: set() for room in order}
    for module, targets in graph.items():
        room = module.partition(".")[0]
        found[room] |= {target.partition(".")[0] for target in targets} - {room}
    return {room: sorted(targets, key=order.index) for room, targets in found.items()}


def table(graph: dict[str, set[str]]) -> str:
    """A row a room: how many modules it has, and which rooms it imports."""
    counts: defaultdict[Any, int] = defaultdict(int)
    for module in graph:
        counts[module.partition(".")[0]] += 1
    rows = ["| room | modules | imports |", "|---|---|---|"]
    rows += [
        f"| `{room}` | {counts[room]} | {', '.join(f'`{target}`' for target in targets) or 'nothing'} |"
        for room, targets in rooms(graph).items()
    ]
    return "\n".join(rows)


def drawn(page: str) -> str:
    """The table that the page holds between its marks."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def main() -> int:
    """What is wrong, a line each; the number of lines as the exit status, at most 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    graph = edges(PACKAGE)
    if parser.parse_args().write:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table(graph)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    wrong = violations(graph)
    wrong += [f"circle of files: {', '.join(group)}" for group in circles(graph)]
    wrong += [f"circle of folders: {', '.join(group)}" for group in circles(folders(graph, PACKAGE))]
    print("\n".join(wrong) or f"{len(graph)} modules, no import of a lower room, no circle")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
