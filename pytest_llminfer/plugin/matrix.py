"""Which test runs on which cell, and in what order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.plugin.session import cells_of
from pytest_llminfer.report.notes import CELL, DECIDED_BY_RECORD

if TYPE_CHECKING:
    import pytest

    from pytest_llminfer.spec import EngineSpec

FIXTURE = "llminfer_engine_spec"
DIVERGENCE = "llminfer_divergence"
BASELINE = "llminfer_baseline"


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for an engine, directly or through its fixtures, once a cell; ``collection`` then drops some."""
    if FIXTURE in metafunc.fixturenames:
        cells = cells_of(metafunc.config)
        metafunc.parametrize(FIXTURE, cells, ids=str, scope="session", indirect=True)


def cell_of(item: pytest.Item) -> EngineSpec | None:
    """The cell that a collected test belongs to."""
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get(FIXTURE)


def name_cells(items: list[pytest.Item]) -> None:
    """Write the cell of each test into its report, and whether it is judged by a record."""
    for item in items:
        if cell := cell_of(item):
            item.user_properties.append((CELL, str(cell)))
            if BASELINE in getattr(item, "fixturenames", ()):
                item.user_properties.append((DECIDED_BY_RECORD, "true"))


def group_by_cell(items: list[pytest.Item], cells: tuple[EngineSpec, ...]) -> None:
    """One stable sort, tests without an engine first: pytest groups session parameters by index, not value, up to 9.1.1.

    Within a cell divergence comes first: it costs seconds, and says what accuracy would take minutes to show.
    """
    order = {cell: position for position, cell in enumerate(cells)}

    def place(item: pytest.Item) -> tuple[int, bool]:
        cell = cell_of(item)
        return (order[cell], DIVERGENCE not in getattr(item, "fixturenames", ())) if cell in order else (-1, False)

    items.sort(key=place)
