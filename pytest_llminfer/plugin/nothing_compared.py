"""A session, or a cell, in which nothing was compared must not look like one in which nothing changed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines.bundled import BUNDLED
from pytest_llminfer.baselines.document import read
from pytest_llminfer.baselines.entries import AUTO, Entry
from pytest_llminfer.baselines.record import BaselineKey
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.spec import EngineSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_llminfer.report.gathering import AgainstRecords
    from pytest_llminfer.report.result import TestResult

_SHOWN = 3


def cells_compared(tests: Iterable[TestResult]) -> set[str]:
    """The cells of which some test gave a verdict, or was not skipped."""
    return {test.cell for test in tests if test.verdicts or test.outcome != "skip"}


def of_session(tests: Sequence[TestResult]) -> str:
    """Why a session whose tests were all skipped shows nothing; empty where something was compared or recorded."""
    if not tests or cells_compared(tests) or any(test.baselines_recorded for test in tests):
        return ""
    if any(test.baselines_missing for test in tests):
        return "nothing was compared: there is no baseline for what was asked"
    return "nothing was compared: every test was skipped (-rs shows why)"


def of_cells(
    cells: Mapping[str, AgainstRecords], specs: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, str], *, own: Path
) -> list[str]:
    """An ERROR for each cell that has records of which none was compared.

    Args:
        cells: What became of the tests that a record decides, by cell.
        specs: The cells' fields.
        loaded: How baselines name their models.
        own: The folder of the project's records; those of the package count too.
    """
    lines = []
    for cell, seen in cells.items():
        if seen.compared or cell not in specs:
            continue
        spec = EngineSpec(**specs[cell])
        found = {str(key): None for folder in (own, BUNDLED) for key in _records_of(spec, seen, loaded.get(cell, ""), folder)}
        if found:
            names = ", ".join(list(found)[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
            lines.append(f"ERROR: nothing recorded was compared in the cell {cell}, which has {names}")
    return lines


def _records_of(spec: EngineSpec, seen: AgainstRecords, model: str, folder: Path) -> Iterator[BaselineKey]:
    """Where a record was missing, those in its file that were asked for as this cell is; of a test that never asked, any at all."""
    own = {Entry.of(spec, per_parallelism=split) for split in (True, False)}
    for key in seen.missing:
        asked = Entry.parse(key.entry)
        for entry in _entries(folder / key.path):
            if entry in (asked, *own):
                continue
            # Another dtype that was asked for by name is another cell; one that nobody named was this one.
            as_asked = replace(
                entry,
                dtype=AUTO if asked.dtype == AUTO else entry.dtype,
                kv_dtype=AUTO if asked.kv_dtype == AUTO else entry.kv_dtype,
            )
            if as_asked == asked and asked in own:
                yield replace(key, entry=str(entry))
    if seen.unasked and model:
        missing = {key.path.stem for key in seen.missing}
        name = BaselineKey("any", model, "any", "").path.parent.name
        for path in sorted(folder.glob(f"any/{name}/*.json")):
            if path.stem not in missing:
                yield from (BaselineKey("any", model, path.stem, str(entry)) for entry in _entries(path) if entry in own)


def _entries(path: Path) -> Iterator[Entry]:
    try:
        document = read(path)
    except BaselineError:
        return  # the test that asked for it says so
    for name in (document or {"entries": {}})["entries"]:
        try:
            yield Entry.parse(name)
        except ValueError:
            continue
