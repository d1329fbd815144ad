"""The one write of baselines: the process that the user started takes what tests recorded, here or in workers of pytest-xdist."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.baselines.notes import MISSING, RECORD, SIDE_FILE, USED
from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.baselines.side_files import SideFiles
from pytest_llminfer.baselines.store import Store
from pytest_llminfer.errors import BaselineError

if TYPE_CHECKING:
    from collections.abc import Mapping


_SHOWN = 5
"""Lines on records that were replaced, unless the session is verbose."""


class Records:
    """What the session recorded, used and missed. only_missing: whether a record that is there stays."""

    def __init__(self, store: Store, *, only_missing: bool) -> None:
        self._store, self._only_missing = store, only_missing
        self._side_files = SideFiles()
        self._recorded = 0
        self._missing: list[Mapping[str, Any]] = []
        self._replaced: dict[str, str] = {}
        self._without_arrays: dict[BaselineKey, Record] = {}
        self._written: dict[Path, None] = {}
        self._problem = ""
        self._rescue: Path | None = None

    def take(self, name: str, note: Mapping[str, Any]) -> None:
        """A note of a test; what is recorded is written at once, so that a session that is killed later loses nothing."""
        if name == SIDE_FILE:
            self._side_files.take(note)
        elif name == RECORD:
            self._recorded += 1
            if note.get("replaced"):
                self._replaced[str(BaselineKey(**note["key"]))] = "; ".join(note["replaced"])
            self._write(note)
        elif name == USED:
            self._store.used.add(BaselineKey(**note))
        elif name == MISSING:
            self._store.used.add(BaselineKey(**note["key"]))
            self._missing.append(note)

    def _write(self, note: Mapping[str, Any]) -> None:
        self._without_arrays[BaselineKey(**note["key"])] = Record(note["expected"], note["conditions"], note["provenance"])
        self._flush()

    def _flush(self) -> None:
        """Write what waits: a record with its arrays, or neither; what cannot be written goes to one folder, arrays and all."""
        problems = []
        for key, record in list(self._without_arrays.items()):
            try:
                self._side_files.write(self._store.path(key), record.expected)
            except BaselineError as error:
                problems.append(str(error))
            else:
                self._store.stage(key, record, only_missing=self._only_missing)
                del self._without_arrays[key]
        try:
            self._written.update(dict.fromkeys(self._store.write()))
        except BaselineError as error:
            problems.append(str(error))
        if problems:
            problems.append(self._kept_elsewhere())
        self._problem = "; ".join(problems)

    def _kept_elsewhere(self) -> str:
        unwritten = self._store.staged | self._without_arrays
        count = f"{len(unwritten)} record{'s' * (len(unwritten) != 1)} not written"
        try:
            self._rescue = self._rescue or Path(tempfile.mkdtemp(prefix="llminfer-unwritten-"))
            rescue = Store(self._rescue)
            for key, record in unwritten.items():
                self._side_files.write(rescue.path(key), record.expected)
                rescue.stage(key, record)
            rescue.write()
        except (BaselineError, OSError) as error:
            return f"{count}, nor could they be kept in a temporary folder: {error}"
        return f"{count}, kept in {rescue.directory}; copy that over when it can be written"

    @property
    def _unwritten(self) -> int:
        return len(self._store.staged | self._without_arrays)

    def missing(self) -> list[str]:
        """A line on what has no baseline yet."""
        if not self._missing:
            return []
        same = all(note["same_command"] for note in self._missing)
        how = "record them with the same command and --update-baselines=new" if same else "-rs shows how each is recorded"
        return [f"baselines: {len(self._missing)} missing; {how}"]

    def _replaced_lines(self, *, verbose: bool) -> list[str]:
        shown = list(self._replaced.items())[: None if verbose else _SHOWN]
        lines = [f"baselines: replaced {key}, which was recorded otherwise: {how}" for key, how in shown]
        more = len(self._replaced) - len(shown)
        return lines + [f"baselines: and {more} more that were recorded otherwise (-v names them)"] * bool(more)

    def settle(self, *, verbose: bool) -> list[str]:
        """Lines on what was recorded, an ERROR where it could not be written, and on what no test asked for."""
        if self._problem:
            self._flush()  # once more: other files may have made room
        problem, lines = self._problem or self._side_files.settle(), []
        if self._written:
            files = list(self._written)
            where = str(files[0]) if len(files) == 1 else f"{len(files)} files under {self._store.directory}"
            lines.append(f"baselines: {self._recorded - self._unwritten} recorded in {where}")
        lines += self._replaced_lines(verbose=verbose)
        if problem:
            lines.append(f"ERROR: {problem}")
        if unused := self._store.unused():
            lines.append(f"baselines: {len(unused)} recorded entries had no test in this session (-v names them)")
            lines += [f"    {key}" for key in unused if verbose]
        return lines
