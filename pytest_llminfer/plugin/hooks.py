"""The hooks of pytest that this plugin answers, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin import checkpoints, collection, collector, command_line, judging, matrix, options, prestart
from pytest_llminfer.report import notes

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["pytest_llminfer.plugin.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Command line and ini options."""
    command_line.add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings; in the process that the user started, gather results and write baselines too."""
    for marker in collection.MARKERS:
        config.addinivalue_line("markers", marker)
    settings = config.stash[options.STASH] = options.resolve(config)
    config.stash[matrix.CELLS] = matrix.expand(settings.matrix)
    config.stash[judging.LOADS] = []
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(collector.SessionReport(config), "llminfer-session-report")


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The session's one line, if any test asks for an engine: only then is the hardware asked for. Or why no test was collected."""
    if not items and not any("::" in argument for argument in config.args):
        return collection.nothing_applies(config)
    return collector.header(config) if any(map(matrix.cell_of, items)) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell, or a checkpoint on disk."""
    matrix.parametrize(metafunc)
    checkpoints.parametrize(metafunc)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Tests of their cells only."""
    return collection.keep_what_applies((yield), collector.config)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Of a test that is named and was left out, say why."""
    with collection.explained(session):
        return (yield)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All tests of a cell together, so that its engine is loaded once."""
    matrix.group_by_cell(items, config.stash[matrix.CELLS])
    cells = (matrix.cell_of(item) for item in items)
    config.stash[prestart.ORDER] = tuple(dict.fromkeys(cell for cell in cells if cell is not None))
    for item in items:
        if cell := matrix.cell_of(item):
            item.user_properties.append((notes.CELL, str(cell)))
    checkpoints.name_cells(items)


def pytest_unconfigure(config: pytest.Config) -> None:
    """No process is left behind, not even one that nobody came to use."""
    prestart.close(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Our own errors without a traceback; what engines cannot do as skips; the loads that this phase caused."""
    pending = item.config.stash[judging.LOADS]
    while pending:
        item.user_properties.append((notes.LOADED, json.dumps(pending.pop())))
    judging.without_traceback(call, strict=item.config.stash[options.STASH].session.strict)
    return (yield)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Inconclusive and invalid verdicts by their own names."""
    return judging.status(report) if isinstance(report, pytest.TestReport) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process a cell under pytest-xdist."""
    from pytest_llminfer.plugin.xdist import CellScheduling

    if config.getoption("dist") == "each":
        return None
    return CellScheduling(config, log, {str(cell): cell.judged_together for cell in config.stash[matrix.CELLS]})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Why a process of pytest-xdist collected nothing."""
    collection.pass_on(node.config, getattr(node, "workeroutput", {}).get(collection.WHY, ""))
