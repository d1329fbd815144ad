"""The hooks of pytest that this plugin answers, and nothing else.

Every pytest session of every project where the plugin is installed runs through them: what only a session with engines needs is
imported when a test asks for one.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin import command_line, family_fixtures, fixtures, short_names
from pytest_llminfer.plugin.session import cells_of, is_used, refuse_platform, settings_of

if TYPE_CHECKING:
    from collections.abc import Generator

MARKERS = (
    "llminfer_only(**fields): collect this test for cells with these values alone, as in llminfer_only(engine='transformers')",
    "llminfer_needs(*capabilities, option=''): collect this test where the engine could answer these, and with this option",
)
FIXTURES = ("llminfer_engine_spec", "llminfer_checkpoint")
"""A test that asks for one of these, directly or through other fixtures, is run once a cell, or once a checkpoint."""


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The fixtures, and the names of the ini file; what stands on the command line comes after the project's own options."""
    # Not through pytest_plugins: for each name there pytest reads the metadata of every installed distribution.
    for module in (fixtures, family_fixtures, short_names):
        pluginmanager.register(module, module.__name__)
    command_line.add_ini(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Our options: last, so that a short name gives way wherever the project or another plugin has it."""
    early_config.stash[command_line.PARSER] = parser
    given = command_line.given(args)
    if not given:
        return (yield)
    return (yield from command_line.register_last(early_config, parser, args, given))


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings if any is given, and gather results in the process that the user started."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if command_line.is_given(config):
        cells_of(config)
        if not settings_of(config).checkpoints.paths:
            refuse_platform(pytest.UsageError)
    if not hasattr(config, "workerinput"):
        from pytest_llminfer.plugin.collector import SessionReport

        config.pluginmanager.register(SessionReport(config), "llminfer-session-report")


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> str | None:
    """The session's one line, if any test asks for an engine: only then is the hardware asked for. Or why no test was collected."""
    if not is_used(config):
        return None
    from pytest_llminfer.plugin import collection, collector, hints, matrix

    if not items and not any("::" in argument for argument in config.args):
        return hints.working(collection.nothing_applies(config), config)
    return collector.header(config) if any(map(matrix.cell_of, items)) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a cell, or a checkpoint on disk."""
    if any(name in metafunc.fixturenames for name in FIXTURES):
        from pytest_llminfer.plugin import checkpoints, matrix

        matrix.parametrize(metafunc)
        checkpoints.parametrize(metafunc)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Tests of their cells only."""
    report = yield
    if not is_used(collector.config):
        return report
    from pytest_llminfer.plugin import collection

    return collection.keep_what_applies(report, collector.config)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Say why a test that is named was left out."""
    try:
        result = yield
    except pytest.UsageError as error:
        if not is_used(session.config):
            raise
        from pytest_llminfer.plugin import collection

        raise collection.explained(error, session.config) from None
    if is_used(session.config):
        from pytest_llminfer.plugin import collection

        collection.tell_of_nothing(session)
    return result


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All tests of a cell together, so that its engine is loaded once."""
    if is_used(config):
        from pytest_llminfer.plugin import checkpoints, matrix, prestart

        matrix.group_by_cell(items, cells_of(config))
        matrix.name_cells(items)
        checkpoints.name_cells(items)
        prestart.follow(config, items)


def pytest_unconfigure(config: pytest.Config) -> None:
    """No process is left behind, not even one that was started ahead and never used."""
    if is_used(config):
        from pytest_llminfer.plugin import prestart

        prestart.close(config)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Our own errors without a traceback; what engines cannot do as skips; the loads that this phase caused."""
    if is_used(item.config):
        from pytest_llminfer.plugin import judging

        judging.tell_loads(item)
        judging.without_traceback(call, item, strict=settings_of(item.config).session.strict)
    return (yield)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """Inconclusive and invalid verdicts by their own names."""
    if not isinstance(report, pytest.TestReport) or not report.user_properties:
        return None
    from pytest_llminfer.plugin import judging

    return judging.status(report)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process a cell under pytest-xdist; where there are no cells, whatever the session has without this plugin."""
    if config.getoption("dist") == "each":
        return None
    from pytest_llminfer.plugin.xdist import Undecided

    return Undecided(config, log, sys.modules[__name__])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Why a process of pytest-xdist collected nothing."""
    if told := getattr(node, "workeroutput", {}).get("llminfer_left_out", ""):
        from pytest_llminfer.plugin import collection

        collection.pass_on(node.config, told)
