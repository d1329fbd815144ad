"""What the whole session found, gathered by the process that the user started, and shown: tables, JUnit properties, files.

Reads the properties that tests, here or in workers of pytest-xdist, put on their reports. Modules of the package are imported
when there is something to report: every pytest session of every project pays for what stands at the top.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin.session import cells_of, settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.plugin.records import Records
    from pytest_llminfer.report.gathering import Gathering, Phase
    from pytest_llminfer.report.result import SessionResult

OURS = "llminfer_"
"""How the names of all notes begin."""


class SessionReport:
    """A plugin of the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._started = time.time()
        self._gathered: tuple[Gathering, Records] | None = None
        self._result: SessionResult | None = None
        self._lines: list[str] = []
        self._others_passed = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take what a test noted; when it is over, its properties become what people read in a JUnit file."""
        if not any(name.startswith(OURS) for name, _ in report.user_properties):
            self._others_passed |= report.when == "call" and report.passed
            return
        gathering, records = self._gathering()
        phase = _phase(report)
        for name, note in gathering.take(phase):
            records.take(name, note)
        if report.when == "teardown":
            from pytest_llminfer.report.junit import properties

            others = [(name, value) for name, value in report.user_properties if not name.startswith(OURS)]
            report.user_properties = [*others, *properties(gathering.result(phase))]

    def _gathering(self) -> tuple[Gathering, Records]:
        if self._gathered is None:
            from pytest_llminfer.plugin.baselines import open_store
            from pytest_llminfer.plugin.records import Records
            from pytest_llminfer.report.gathering import Gathering

            only_missing = settings_of(self._config).baselines.update == "new"
            self._gathered = Gathering(), Records(open_store(self._config), only_missing=only_missing)
        return self._gathered

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Make the result, and write it where that was asked for; what could not be written fails the session."""
        asked_for = self._config.getoption("llminfer_report", None) or self._config.getini("llminfer_report")
        if self._gathered is None and not asked_for:
            return
        from pytest_llminfer.plugin.hints import working
        from pytest_llminfer.plugin.session_facts import facts, report_folder

        folder = None if self._config.option.collectonly else report_folder(self._config)
        if self._gathered is None and folder is None:
            return
        gathering, records = self._gathering()
        self._lines = [*self._nothing_compared(session, gathering), *records.missing(), *self._settle(gathering)]
        self._lines += records.settle(verbose=self._config.get_verbosity() > 0)
        self._lines = [working(line, self._config) for line in self._lines]
        self._fail_if_told(session, self._lines)
        from pytest_llminfer.report.result import SessionResult

        tests = gathering.tests()
        self._result = SessionResult(
            **facts(self._config, started=self._started, exit_status=int(session.exitstatus)),
            cells=gathering.cells(self._specs() if any(test.cell for test in tests) else {}),
            tests=tests,
            sections=gathering.sections(),
            messages=tuple(self._lines),
        )
        if folder is not None:
            from pytest_llminfer.errors import BadInputError
            from pytest_llminfer.report.files import write, write_answers

            try:
                write(folder, self._result)
                if answers := self._answers(gathering):
                    write_answers(folder, answers)
            except BadInputError as error:
                self._lines.append(f"ERROR: {error}")
                self._fail_if_told(session, self._lines)

    def _specs(self) -> dict[str, dict[str, Any]]:
        return {str(cell): cell.to_dict() for cell in cells_of(self._config)}

    def _fail_if_told(self, session: pytest.Session, lines: Sequence[str]) -> None:
        if any(line.startswith("ERROR") for line in lines):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _answers(self, gathering: Gathering) -> list[dict[str, Any]]:
        """What the cells answered, a row a question."""
        from pytest_llminfer.families.accuracy.section import ANSWERS

        return [{"cell": note["cell"], **row} for note in gathering.notes(ANSWERS) for row in note["rows"]]

    def _settle(self, gathering: Gathering) -> list[str]:
        from pytest_llminfer.families.accuracy import section

        evidence = gathering.notes(section.EVIDENCE)
        return section.settle(evidence) if evidence else []

    def _nothing_compared(self, session: pytest.Session, gathering: Gathering) -> list[str]:
        """Cells that have records of which none was compared; with ``--llminfer-strict``, cells whose tests were all skipped.

        A session that compared nothing at all ends as pytest does when no test ran.
        """
        from pytest_llminfer.plugin.nothing_compared import cells_compared, of_cells, of_session
        from pytest_llminfer.report.notes import LOADED

        tests, settings = gathering.tests(), settings_of(self._config)
        loaded = {note["cell"]: note.get("model", "") for note in gathering.notes(LOADED)}
        lines = of_cells(gathering.against_records(), self._specs(), loaded, own=settings.baselines.directory)
        if settings.session.strict:
            left = dict.fromkeys(test.cell for test in tests if test.cell and test.cell not in cells_compared(tests))
            lines += [f"ERROR: nothing was compared in the cell {cell}" for cell in left]
        if (told := of_session(tests)) and not self._others_passed:
            lines.append(told)
            if session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        return lines

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The tables of cells and families, then what became of baselines."""
        if self._result is not None and any(test.cell for test in self._result.tests):
            from pytest_llminfer.report.terminal import summary

            terminalreporter.section("llminfer")
            if self._config.getoption("numprocesses", None):
                # Under pytest-xdist this process does not see what is collected, so the line could not come first.
                terminalreporter.write_line(header(self._config))
            writer = self._config.get_terminal_writer()
            encoding = getattr(writer._file, "encoding", None) or "utf-8"  # noqa: SLF001 - pytest has no public way
            for line in summary(self._result, writer.fullwidth, encoding=encoding):
                terminalreporter.write_line(line)
        for line in self._lines:
            terminalreporter.write_line(line, red=line.startswith("ERROR"))


def header(config: pytest.Config) -> str:
    """What is tested, on what, against which baselines, and where each setting came from."""
    from pytest_llminfer.plugin.header import header as render
    from pytest_llminfer.plugin.session_facts import hardware

    return render(settings_of(config), len(cells_of(config)), hardware(config))


def _phase(report: pytest.TestReport) -> Phase:
    from pytest_llminfer.report.gathering import Phase

    return Phase(
        node_id=report.nodeid,
        process=getattr(report, "worker_id", ""),
        when=str(report.when),
        outcome=report.outcome,
        seconds=report.duration,
        reason="" if report.passed else _reason(report),
        properties=tuple(report.user_properties),
    )


def _reason(report: pytest.TestReport) -> str:
    if report.skipped:
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else getattr(report, "wasxfail", "")
        return str(told).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message) if crash is not None else report.longreprtext
