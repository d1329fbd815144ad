"""What the whole session found, gathered by the process that the user started: the table, and the one write of baselines.

Reads the properties that tests, here or in workers of pytest-xdist, put on their reports. Modules of the package are imported
when there is something to report: every pytest session of every project pays for what stands at the top.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.baselines.notes import MISSING, RECORD, SIDE_FILE, USED
from pytest_llminfer.baselines.side_files import SideFiles
from pytest_llminfer.families.accuracy import section as evidence
from pytest_llminfer.families.memory.section import MEMORY
from pytest_llminfer.families.parallelism import section as parallelism
from pytest_llminfer.plugin import judging, matrix, options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_llminfer.report.table import TableEntry


class SessionReport:
    """A plugin of the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._rows: dict[str, dict[str, list[TableEntry]]] = {}
        self._families: dict[str, None] = {}
        self._loads: list[dict[str, Any]] = []
        self._records: list[dict[str, Any]] = []
        self._used: list[dict[str, Any]] = []
        self._missing: list[dict[str, Any]] = []
        self._parallelisms: list[dict[str, Any]] = []
        self._evidence: list[dict[str, Any]] = []
        self._memory_profiles: list[dict[str, Any]] = []
        self._written: dict[Path, None] = {}
        self._side_files = SideFiles()
        self._problem = ""
        self._lines: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of a test's call, or of whatever kept it from being called."""
        cell = next((str(value) for name, value in report.user_properties if name == judging.CELL), "")
        if not cell or (report.when != "call" and report.passed):
            return
        family = PurePath(report.nodeid.partition("::")[0]).stem.removeprefix("test_")
        self._families.setdefault(family)
        self._rows.setdefault(cell, {}).setdefault(family, []).extend(_entries(report))
        takers = {judging.LOADED: self._loads, RECORD: self._records, USED: self._used, MISSING: self._missing}
        takers |= {parallelism.PARALLELISM: self._parallelisms, evidence.EVIDENCE: self._evidence, MEMORY: self._memory_profiles}
        for name, value in report.user_properties:
            if name == SIDE_FILE:
                self._side_files.take(json.loads(str(value)))
            if name in takers and report.when != "teardown":
                note = json.loads(str(value))
                # Several tests of a cell may stand on the same evidence: it counts once.
                if name != evidence.EVIDENCE or note not in self._evidence:
                    takers[name].append(note)
                if name == RECORD:
                    self._write(note)

    def _write(self, note: dict[str, Any]) -> None:
        """Write what was recorded at once: a session that is killed later loses nothing."""
        from pytest_llminfer.baselines.record import BaselineKey, Record
        from pytest_llminfer.errors import BaselineError
        from pytest_llminfer.plugin.baselines import open_store

        store = open_store(self._config)
        record = Record(note["expected"], note["conditions"], note["provenance"])
        only_missing = self._config.stash[options.STASH].baselines.update == "new"
        key = BaselineKey(**note["key"])
        store.stage(key, record, only_missing=only_missing)
        try:
            self._side_files.write(store.path(key), record.expected)
            self._written.update(dict.fromkeys(store.write()))
        except BaselineError as error:
            self._problem = str(error)
        else:
            self._problem = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Say what was recorded; what could not be written fails the session."""
        for cell in self._cells_without_verdict() if self._config.stash[options.STASH].session.strict else ():
            self._lines.append(f"ERROR: nothing was compared in the cell {cell}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self._missing:
            same = all(note["same_command"] for note in self._missing)
            how = "record them with the same command and --update-baselines=new" if same else "-rs shows how each is recorded"
            self._lines.append(f"baselines: {len(self._missing)} missing; {how}")
        if self._evidence:
            self._lines += evidence.settle(self._evidence)
            if any(line.startswith("ERROR") for line in self._lines):
                session.exitstatus = pytest.ExitCode.TESTS_FAILED
        self._problem = self._problem or self._side_files.settle()
        if not self._records and not self._used:
            return
        from pytest_llminfer.baselines.record import BaselineKey
        from pytest_llminfer.plugin.baselines import open_store

        store = open_store(self._config)
        store.used.update(BaselineKey(**key) for key in self._used)
        if self._written:
            files = (
                str(next(iter(self._written))) if len(self._written) == 1 else f"{len(self._written)} files under {store.directory}"
            )
            self._lines.append(f"baselines: {len(self._records)} recorded in {files}")
        if self._problem:
            self._lines.append(f"ERROR: {self._problem}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if unused := store.unused():
            self._lines.append(f"baselines: {len(unused)} recorded entries had no test in this session (-v names them)")
            if self._config.get_verbosity() > 0:
                self._lines += [f"    {key}" for key in unused]

    def _cells_without_verdict(self) -> list[str]:
        return [
            cell for cell, row in self._rows.items() if all(entry.status == "skip" for found in row.values() for entry in found)
        ]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The table of cells and families, then what became of baselines."""
        if self._rows:
            from pytest_llminfer.report.names import short_names
            from pytest_llminfer.report.table import merge, render_table

            terminalreporter.section("llminfer")
            if self._config.getoption("numprocesses", None):
                # Under pytest-xdist this process does not see what is collected, so the line could not come first.
                terminalreporter.write_line(header(self._config))
            names = short_names(
                [*self._rows, *(line["cell"] for line in self._parallelisms), *(load["cell"] for load in self._loads)]
            )
            rows = {names[cell]: {family: merge(found) for family, found in row.items()} for cell, row in self._rows.items()}
            writer = self._config.get_terminal_writer()
            encoding = getattr(writer._file, "encoding", None) or "utf-8"  # noqa: SLF001 - pytest has no public way
            for line in render_table(rows, list(self._families), writer.fullwidth, encoding=encoding):
                terminalreporter.write_line(line)
            for line in self._other_tables(names):
                terminalreporter.write_line(line)
        for line in self._lines:
            terminalreporter.write_line(line, red=line.startswith("ERROR"))

    def _other_tables(self, names: dict[str, str]) -> Iterator[str]:
        """Cells split over several GPUs, the evidence on accuracy, the memory, and the loads; each where there is any."""
        if any(line["parallelism"] != "single" for line in self._parallelisms):
            yield ""
            yield from parallelism.render([line | {"cell": names[line["cell"]]} for line in self._parallelisms])
        if self._evidence:
            yield ""
            yield from evidence.render([note | {"cell": names[note["cell"]]} for note in self._evidence])
        if self._memory_profiles:
            from pytest_llminfer.families.memory import section as memory_profile

            yield ""
            yield from memory_profile.render([note | {"cell": names[note["cell"]]} for note in self._memory_profiles])
        if self._loads:
            yield f"engine loads: {len(self._loads)}"
            for load in self._loads:
                phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in load["phases"].items())
                afresh = ", started afresh" * load["afresh"]
                yield f"    {names[load['cell']]}{afresh}: {sum(load['phases'].values()):.1f} s ({phases})"


def header(config: pytest.Config) -> str:
    """What is tested, on what, against which baselines, and where each setting came from."""
    from pytest_llminfer.report.header import header as render

    return render(config.stash[options.STASH], len(config.stash[matrix.CELLS]))


def _entries(report: pytest.TestReport) -> list[TableEntry]:
    from pytest_llminfer.report.table import TableEntry

    notes = judging.verdicts(report.user_properties)
    entries = [TableEntry(note["outcome"], note["key"]) for note in notes]
    if report.skipped:
        recorded = any(name == RECORD for name, _ in report.user_properties)
        entries.append(TableEntry("skip", "recorded" if recorded else ""))
    elif report.failed and not any(note["fatal"] for note in notes):
        entries.append(TableEntry("fail" if report.when == "call" else "error"))
    return entries or [TableEntry("pass")]
