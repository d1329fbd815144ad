"""With pytest-xdist, one process takes all tests of a cell, so that an engine is loaded once however many processes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest


class CellScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types here
    """Scopes are cells, those that are judged by each other's answers together (``cells``: the id of each to what those share);
    tests without an engine are spread one by one, or by file where that was asked for.

    The controller sees node ids only, so a cell is found by its id between the brackets. ``--dist=loadgroup`` would do, were it
    not without effect on pytest 9.2 (pytest-xdist issue 1386).
    """

    def __init__(self, config: pytest.Config, log: Any, cells: Mapping[str, str]) -> None:
        super().__init__(config, log)
        self._group_of = cells
        self._cells = sorted(cells, key=len, reverse=True)
        self._by_file = config.getoption("dist") in ("loadfile", "loadscope", "loadgroup")

    def _split_scope(self, nodeid: str) -> str:
        cell = scope_of(nodeid, self._cells)
        return self._group_of[cell] if cell else (nodeid.partition("::")[0] if self._by_file else nodeid)


def scope_of(nodeid: str, cells: list[str]) -> str:
    """The cell in a node id, the longest that fits; empty where there is none."""
    _, bracket, parameters = nodeid.partition("[")
    if bracket:
        inside = f"-{parameters.rstrip(']')}-"
        for cell in cells:
            if f"-{cell}-" in inside:
                return cell
    return ""
