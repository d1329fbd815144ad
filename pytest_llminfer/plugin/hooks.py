"""The hooks of pytest that this plugin answers, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin import checkpoints, collector, command_line, judging, matrix, options, prestart

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["pytest_llminfer.plugin.fixtures"]

MARKER = "llminfer_only(**fields): run this test only on cells with these values, as in llminfer_only(engine='transformers')"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The names of the ini file; what stands on the command line comes after the project's own options."""
    command_line.add_ini(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> Generator[None]:
    """Our options: last, so that a short name gives way wherever the project or another plugin has it."""
    given = command_line.given(args)
    if not given:
        return (yield)
    return (yield from command_line.register_last(early_config, parser, args, given))


def pytest_configure(config: pytest.Config) -> None:
    """Resolve the settings; in the process that the user started, gather results and write baselines too."""
    config.addinivalue_line("markers", MARKER)
    settings = config.stash[options.STASH] = options.resolve(config)
    config.stash[matrix.CELLS] = matrix.expand(settings.matrix)
    config.stash[judging.LOADS] = []
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(collector.SessionReport(config), "llminfer-session-report")


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The session's one line, if any test asks for an engine: only then is the hardware asked for."""
    return collector.header(config) if any(map(matrix.cell_of, items)) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell, or a checkpoint on disk."""
    matrix.parametrize(metafunc)
    checkpoints.parametrize(metafunc)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All tests of a cell together, so that its engine is loaded once."""
    matrix.group_by_cell(items, config.stash[matrix.CELLS])
    cells = (matrix.cell_of(item) for item in items)
    config.stash[prestart.ORDER] = tuple(dict.fromkeys(cell for cell in cells if cell is not None))
    for item in items:
        if cell := matrix.cell_of(item):
            item.user_properties.append((judging.CELL, str(cell)))
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
        item.user_properties.append((judging.LOADED, json.dumps(pending.pop())))
    judging.without_traceback(call)
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
