"""From the reports of tests to the result of a session. Pure: each phase of a test comes in as plain data, in the order of time."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines.notes import MISSING, RECORD, SIDE_FILE, USED
from pytest_llminfer.baselines.record import BaselineKey
from pytest_llminfer.families.accuracy import section as accuracy
from pytest_llminfer.families.memory import section as memory
from pytest_llminfer.families.parallelism import section as parallelism
from pytest_llminfer.report.notes import CELL, DECIDED_BY_RECORD, LOADED, VERDICT
from pytest_llminfer.report.result import CellResult, Load, TestResult
from pytest_llminfer.report.table import STATUSES
from pytest_llminfer.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Note = tuple[str, Any]

SECTIONS = {"parallelism": parallelism, "accuracy": accuracy, "memory": memory}
"""The families whose cells are shown together, beside their verdicts, in the order of their tables."""
_NOTED = {"parallelism": parallelism.PARALLELISM, "accuracy": accuracy.EVIDENCE, "memory": memory.MEMORY}


_KNOWN = {VERDICT, LOADED, DECIDED_BY_RECORD, SIDE_FILE, accuracy.ANSWERS, *_NOTED.values(), RECORD, USED, MISSING}


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of one test.

    Attributes:
        node_id: As pytest has it.
        process: Which process of pytest-xdist ran it (``gw0``); empty without pytest-xdist.
        when: ``setup``, ``call`` or ``teardown``.
        outcome: ``passed``, ``failed`` or ``skipped``.
        seconds: How long it took.
        reason: Why it did not pass; empty where it did.
        properties: All that the test has noted up to here, oldest first: pairs of a name and JSON text.
    """

    node_id: str
    process: str
    when: str
    outcome: str
    seconds: float
    reason: str
    properties: Sequence[tuple[str, object]]


@dataclass(slots=True)
class AgainstRecords:
    """What became of those tests of a cell that a record decides.

    Attributes:
        compared: Whether at least one was judged by a record, or made one.
        missing: Keys of the records that were not found; empty if none was missing.
        unasked: How many tests were skipped before they looked for a record.
    """

    compared: bool = False
    missing: list[BaselineKey] = field(default_factory=list)
    unasked: int = 0


@dataclass(slots=True)
class _Test:
    """What one test has shown so far.

    Attributes:
        node_id: As pytest has it.
        cell: Id of its cell; empty without one.
        phases: The phases that have ended, oldest first, without their properties.
        notes: The notes that this plugin knows, oldest first; of records only their key.
        seen: How many properties have been read already, since each phase carries those of the phases before it.
    """

    node_id: str
    cell: str = ""
    phases: list[Phase] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    seen: int = 0

    def take(self, phase: Phase) -> list[Note]:
        fresh, self.seen = phase.properties[self.seen :], len(phase.properties)
        self.cell = self.cell or next((str(value) for name, value in fresh if name == CELL), "")
        self.phases.append(replace(phase, properties=()))
        found = [(name, json.loads(str(value))) for name, value in fresh if name in _KNOWN]
        # Arrays and records go into the files of baselines: here only what names them is kept.
        self.notes += [(name, {"key": note["key"]} if name == RECORD else note) for name, note in found if name != SIDE_FILE]
        return found

    def noted(self, wanted: str) -> list[dict[str, Any]]:
        return [note for name, note in self.notes if name == wanted]

    @property
    def told(self) -> bool:
        """Whether it was called or kept from it, and is about a cell or has given a verdict."""
        judged = bool(self.cell) or bool(self.noted(VERDICT))
        return judged and any(phase.when == "call" or phase.outcome != "passed" for phase in self.phases)


class Gathering:
    """What the tests of a session have said so far."""

    def __init__(self) -> None:
        self._tests: dict[tuple[str, str], _Test] = {}

    def take(self, phase: Phase) -> list[Note]:
        """Add a phase; what the test has noted since the last one, each with its name."""
        return self._test(phase).take(phase)

    def result(self, phase: Phase) -> TestResult:
        """What this phase's test has shown so far."""
        return _result(self._test(phase))

    def tests(self) -> tuple[TestResult, ...]:
        """The tests that have a cell or gave a verdict, and were called or kept from it, in the order of time."""
        return tuple(map(_result, self._told()))

    def cells(self, specs: Mapping[str, Mapping[str, Any]]) -> tuple[CellResult, ...]:
        """The cells of these tests, and those that were loaded beside them, each with what its engine said of itself.

        specs: by id the fields of each cell of the session; one that is not there is a checkpoint on disk, unless it was loaded.
        """
        loads = self.notes(LOADED)
        ids = dict.fromkeys([*(test.cell for test in self._told()), *(note["cell"] for note in loads)])
        return tuple(_cell(cell, specs.get(cell), [note for note in loads if note["cell"] == cell]) for cell in ids if cell)

    def against_records(self) -> dict[str, AgainstRecords]:
        """By cell, what became of the tests that a record decides."""
        found: dict[str, AgainstRecords] = {}
        for test in self._told():
            if test.cell and test.noted(DECIDED_BY_RECORD):
                cell = found.setdefault(test.cell, AgainstRecords())
                missing = [BaselineKey(**note["key"]) for note in test.noted(MISSING)]
                cell.compared |= bool(test.noted(USED) or test.noted(RECORD))
                cell.missing += missing
                cell.unasked += not missing and any(phase.outcome == "skipped" for phase in test.phases)
        return found

    def sections(self) -> dict[str, tuple[dict[str, Any], ...]]:
        """The rows of each further table that has any, by family."""
        found = {name: tuple(SECTIONS[name].rows(self.notes(noted))) for name, noted in _NOTED.items()}
        return {name: rows for name, rows in found.items() if rows}

    def notes(self, name: str) -> list[dict[str, Any]]:
        """All notes of this name; of several tests that stand on one piece of evidence, it once."""
        found = [note for test in self._told() for note in test.noted(name)]
        if name != accuracy.EVIDENCE:
            return found
        return [note for number, note in enumerate(found) if note not in found[:number]]

    def _test(self, phase: Phase) -> _Test:
        return self._tests.setdefault((phase.process, phase.node_id), _Test(phase.node_id))

    def _told(self) -> list[_Test]:
        return [test for test in self._tests.values() if test.told]


def _result(test: _Test) -> TestResult:
    noted = test.noted(VERDICT)
    fatal = [note["outcome"] for note in noted if note["fatal"]]
    failed = [phase for phase in test.phases if phase.outcome == "failed"]
    # A verdict that ends a test says more than pytest does of it.
    unsaid = [phase for phase in failed if phase.when == "teardown" or not fatal]
    skipped = [] if failed else [phase for phase in test.phases if phase.outcome == "skipped"]
    if failed:
        found = [*fatal, *("fail" if phase.when == "call" else "error" for phase in unsaid)]
    else:
        found = ["skip"] if skipped else [note["outcome"] for note in noted] or ["pass"]
    return TestResult(
        node_id=test.node_id,
        family=family_of(test.node_id),
        cell=test.cell,
        outcome=max(found, key=STATUSES.index),
        failed=bool(failed),
        seconds={phase.when: phase.seconds for phase in test.phases},
        verdicts=tuple(map(Verdict.from_dict, noted)),
        reason="\n".join(phase.reason for phase in (*unsaid, *skipped) if phase.reason),
        baselines_used=tuple(str(BaselineKey(**key)) for key in test.noted(USED)),
        baselines_missing=tuple(str(BaselineKey(**note["key"])) for note in test.noted(MISSING)),
        baselines_recorded=tuple(str(BaselineKey(**note["key"])) for note in test.noted(RECORD)),
    )


def family_of(node_id: str) -> str:
    """What a test is evidence of, from the name of its file."""
    return PurePath(node_id.partition("::")[0]).stem.removeprefix("test_")


def _cell(cell: str, spec: Mapping[str, Any] | None, loads: list[dict[str, Any]]) -> CellResult:
    said = loads[-1] if loads else {}
    kept = ("versions", "device", "device_name", "device_count", "dtype", "kv_dtype")
    facts = {name: said[name] for name in kept if name in said}
    phases = tuple(Load(load["phases"], load["afresh"]) for load in loads)
    return CellResult(id=cell, spec=said.get("spec", spec), loads=phases, **facts)
