"""With pytest-xdist, one process takes all tests of a cell, so that an engine is loaded once however many processes there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xdist.scheduler import LoadScopeScheduling

from pytest_llminfer.plugin.session import cells_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pytest


class Undecided:
    """Stands in for a scheduler until the first process has reported its tests: only then is it known whether there are cells.

    Without cells it makes room for the scheduler that the session would have without this plugin.
    """

    tests_finished = has_pending = collection_is_completed = False

    def __init__(self, config: pytest.Config, log: Any, ours: object) -> None:
        self._config, self._log, self._ours = config, log, ours
        self.nodes: list[Any] = []

    def add_node(self, node: Any) -> None:
        """A process that is ready."""
        self.nodes.append(node)

    def remove_node(self, node: Any) -> None:
        """A process that ended before it collected anything, and so ran no test."""
        self.nodes.remove(node)

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """Decide, and let the scheduler take everything from here."""
        scheduler = self._scheduler(collection)
        session: Any = self._config.pluginmanager.get_plugin("dsession")
        session.sched = scheduler
        for known in self.nodes:
            scheduler.add_node(known)
        scheduler.add_node_collection(node, collection)

    def _scheduler(self, collection: Sequence[str]) -> Any:
        # Only a parametrized test can have a cell.
        cells = {str(cell): cell.judged_together for cell in cells_of(self._config)} if any("[" in it for it in collection) else {}
        if any(scope_of(nodeid, list(cells)) for nodeid in collection):
            return CellScheduling(self._config, self._log, cells)
        others = self._config.pluginmanager.subset_hook_caller("pytest_xdist_make_scheduler", [self._ours])
        return others(config=self._config, log=self._log)


class CellScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types here
    """Scopes are cells, those that are judged by each other's answers together (``cells``: the id of each to what those share);
    tests without an engine are distributed one by one, or by file where that was asked for.

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
