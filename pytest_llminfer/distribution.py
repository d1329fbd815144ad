"""With pytest-xdist, one process takes all tests of a cell, so that an engine is loaded once however many processes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    import pytest


class CellScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types here
    """Scopes are cells; tests without an engine go by file.

    The controller sees node ids only, so a cell is found by its id between the brackets. ``--dist=loadgroup`` would do, were it
    not without effect on pytest 9.2 (pytest-xdist issue 1386).
    """

    def __init__(self, config: pytest.Config, log: Any, cells: tuple[str, ...]) -> None:
        super().__init__(config, log)
        self._cells = sorted(cells, key=len, reverse=True)

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid, self._cells)


def scope_of(nodeid: str, cells: list[str]) -> str:
    """The cell in a node id, the longest that fits; the file where there is none."""
    file, bracket, parameters = nodeid.partition("[")
    if bracket:
        inside = f"-{parameters.rstrip(']')}-"
        for cell in cells:
            if f"-{cell}-" in inside:
                return cell
    return file.partition("::")[0]
