"""The result of a session in the terminal: cells and families, what is undecided, the further tables, and the loads. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.report.align import align, writable
from pytest_llminfer.report.gathering import SECTIONS
from pytest_llminfer.report.names import short_names
from pytest_llminfer.report.table import TableEntry, merge, render_table
from pytest_llminfer.verdict import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_llminfer.report.result import SessionResult, TestResult


def summary(result: SessionResult, columns: int, *, encoding: str = "utf-8") -> list[str]:
    """The lines of all tables, for a terminal with this many columns and this encoding."""
    rows: dict[str, dict[str, list[TableEntry]]] = {}
    for test in result.tests:
        if test.cell:
            rows.setdefault(test.cell, {}).setdefault(test.family, []).extend(entries(test))
    families = list(dict.fromkeys(test.family for test in result.tests if test.cell))
    sections = (row["cell"] for section in result.sections.values() for row in section)
    names = short_names([*rows, *sections, *(cell.id for cell in result.cells)])
    merged = {names[cell]: {family: merge(found) for family, found in row.items()} for cell, row in rows.items()}
    further = (writable(line, encoding) for line in (*_undecided(result), *_further(result, names)))
    return [*render_table(merged, families, columns, encoding=encoding), *further]


def entries(test: TestResult) -> list[TableEntry]:
    """What one test adds to its field of the table: each of its verdicts, and its own outcome where no verdict has it."""
    found = [TableEntry(verdict.outcome.value, verdict.key) for verdict in test.verdicts]
    if test.outcome not in [entry.status for entry in found]:
        found.append(TableEntry(test.outcome, "recorded" if test.outcome == "skip" and test.baselines_recorded else ""))
    return found


def _undecided(result: SessionResult) -> Iterator[str]:
    """What an inconclusive verdict says: its test has not failed, so that nothing else shows it."""
    for test in result.tests:
        for verdict in test.verdicts:
            if verdict.outcome is Outcome.INCONCLUSIVE and not test.failed:
                yield ""
                yield test.node_id
                yield from (f"    {line}" for line in str(verdict).splitlines())


def _further(result: SessionResult, names: Mapping[str, str]) -> Iterator[str]:
    for name, section in SECTIONS.items():
        if rows := result.sections.get(name):
            yield ""
            yield from align(section.table([{**row, "cell": names[row["cell"]]} for row in rows]))
    loads = [(names[cell.id], load) for cell in result.cells for load in cell.loads]
    if loads:
        yield f"engine loads: {len(loads)}"
    for cell, load in loads:
        phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in load.phases.items())
        yield f"    {cell}{', started afresh' * load.afresh}: {sum(load.phases.values()):.1f} s ({phases})"
