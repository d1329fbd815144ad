"""Baselines as families use them: judged by what is recorded, or recorded from what an engine shows.

A family says what to ask an engine (``observe``) and what must be equal for the comparison to be fair; where the expectation comes
from, and whether one is being made, is decided here. The test ends by an exception where nothing can be judged.
"""

from __future__ import annotations

import base64
import contextlib
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llminfer.baselines import conditions as of_record
from pytest_llminfer.baselines import run_history, side_files
from pytest_llminfer.baselines.advice import dtype_options, parallelism_options, read_as, refuse_replacing, unfair
from pytest_llminfer.baselines.bundled import BUNDLED
from pytest_llminfer.baselines.entries import Entry
from pytest_llminfer.baselines.notes import MISSING, RECORD, SIDE_FILE, USED
from pytest_llminfer.baselines.provenance import provenance, working_commit
from pytest_llminfer.baselines.record import BaselineKey, Record, plain
from pytest_llminfer.errors import BaselineError, BaselineRecordedError, MissingBaselineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from pytest_llminfer.baselines.conditions import Arguments
    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.baselines.store import BaselineSource
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.verdict import Verdict

ANY = "any"


class Observe(Protocol):
    """What a family asks of an engine."""

    def __call__(self, engine: Engine, previous: Mapping[str, Any] | None, /) -> Mapping[str, Any]:
        """What a record of ``engine`` would hold. ``previous``: what is recorded so far; None where nothing is."""


@dataclass(slots=True)
class SessionRecords:
    """What this process has recorded in this session: later cells are judged by it.

    Attributes:
        records: Key to record.
        side_files: File name to the packed arrays beside a record; the process that writes the files may not have done so yet.
    """

    records: dict[BaselineKey, Record] = field(default_factory=dict)
    side_files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    """Whether and where baselines are recorded.

    Attributes:
        folder: The project's baselines.
        mode: ``""`` (nothing is recorded), ``"new"`` (what has no record yet), ``"all"``, or ``"replace"`` (over records
            of something else too).
        root: The project, whose commit is part of a record's provenance.
        versions: Name to version of what runs the tests, beside the engine's own.
    """

    folder: Path
    mode: str
    root: Path
    versions: Mapping[str, str]


class Baseline:
    """The recorded expectations of one test's cell.

    judge: called with the verdict that a comparison is not fair; it ends the test. note: takes what is recorded, used or missing
    to the process that gathers it.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        source: BaselineSource,
        session: SessionRecords,
        hardware: Hardware,
        recording: Recording,
        judge: Callable[[Verdict], None],
        note: Note,
    ) -> None:
        self._engine, self._source, self._session = engine, source, session
        self._hardware, self._recording, self._judge, self._note = hardware, recording, judge, note

    def expected(  # noqa: PLR0913 - which record, how it is made, and what makes it fair
        self,
        family: str,
        *,
        observe: Observe,
        conditions: Mapping[str, Any],
        n: int | Callable[[Mapping[str, Any]], int],
        per_hardware: bool = False,
        per_parallelism: bool = False,
        by: str = "",
        unquantized: bool = False,
        arguments: Arguments = "answers",
        read: Callable[[Mapping[str, Any]], Any] = dict,
    ) -> Any:
        """What is recorded for this cell, to be judged against, as ``read`` makes it.

        observe: asks an engine for what a record would hold; called with this cell's engine, and only to record.
        conditions: what must be equal for the comparison to be fair, beside what was served and how (``conditions.of_engine``); a
        difference makes the test INVALID and names the field.
        n: how many things the record stands for, or how to read that from it.
        per_hardware: whether the expectation holds on this hardware only. per_parallelism: whether it depends on how the cell is
        split over accelerators, and on whether it is served; otherwise parallel and served cells are judged by the record of
        the plain one, and never write it. by: another engine whose record is the reference; only that engine writes it.
        unquantized: whether the reference is the record of the same engine with unquantized weights, which only that cell writes.
        arguments: which of the engine's decide it: "all"; but those for how much of a device it takes ("answers"); or "none".
        read: what the family makes of a record; what it raises where a value is missing or of another shape, is one BaselineError.

        Raises:
            BaselineRecordedError: a record was made of this run.
            BaselineError: the record cannot be read, or is of something else and would be replaced, or there is nothing to record.
            MissingBaselineError: there is none, and none is being made.
        """
        spec = self._engine.spec
        asked = self._key(family, per_hardware=per_hardware, per_parallelism=per_parallelism, by=by, unquantized=unquantized)
        own = self._is_own(by, unquantized=unquantized)
        conditions = {**conditions, **of_record.of_engine(self._engine, own=own, arguments=arguments)}
        again = asked in self._session.records
        key, record = self._look_up(asked, own=own)
        writes = own and (per_parallelism or not (spec.parallel or spec.serve))
        # A second cell of this session with the same key is judged by the first.
        mode = self._recording.mode if writes and not again else ""
        if mode in ("all", "replace") or (mode == "new" and record is None):
            previous, replaced = self._previous(asked, conditions, read)
            expected = plain(observe(self._engine, previous), "expected")
            self._record(asked, expected, conditions, n(expected) if callable(n) else n, replaced=replaced)
            raise BaselineRecordedError(f"baseline recorded: {asked}; run again without --update-baselines to be judged by it")
        if record is None:
            added = [f"--engine={by}"] * bool(by) + ["--quantization=none"] * unquantized + dtype_options(asked, key)
            raise self._missing(key, added, left_out=[] if per_parallelism else parallelism_options(spec))
        self._note(USED, asdict(key))
        if different := of_record.differences(record.conditions, conditions):
            self._judge(unfair(key, record, different))
        return read_as(read, key, record.expected)

    def _previous(
        self, key: BaselineKey, conditions: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]
    ) -> tuple[Mapping[str, Any] | None, list[str]]:
        """What a new record may build on, if that is comparable; and in which conditions it differs from the one it replaces."""
        record = self._find(key)
        if record is None:
            return None, []
        different = of_record.differences(record.conditions, conditions)
        if self._recording.mode != "replace":
            refuse_replacing(key, different)
        with contextlib.suppress(BaselineError):
            read_as(read, key, record.expected)
            return (None if different else record.expected), list(map(str, different))
        return None, ["it could not be read"]

    def entry(self) -> str:
        """The entry of this cell, with the words of its parallelism."""
        return str(Entry.of(self._engine.spec))

    @property
    def run_history_path(self) -> Path:
        """Where the past runs of this model are kept, beside its records."""
        key = BaselineKey(ANY, self._engine.model.id, "run_history", self.entry())
        return self._recording.folder / key.path.parent / run_history.FILE

    def has(
        self, family: str, *, per_hardware: bool = False, per_parallelism: bool = False, by: str = "", unquantized: bool = False
    ) -> bool:
        """Whether :meth:`expected` would find a record, here or made in this session."""
        key = self._key(family, per_hardware=per_hardware, per_parallelism=per_parallelism, by=by, unquantized=unquantized)
        return self._look_up(key, own=self._is_own(by, unquantized=unquantized))[1] is not None

    def conditions(self, family: str, *, unquantized: bool = False) -> dict[str, Any]:
        """Of the record that :meth:`expected` judges by; empty where there is none, and where this run makes it anew."""
        spec, own = self._engine.spec, self._is_own("", unquantized=unquantized)
        key = self._key(family, per_hardware=False, per_parallelism=False, by="", unquantized=unquantized)
        writes = own and not (spec.parallel or spec.serve)
        if self._recording.mode not in ("", "new") and writes and key not in self._session.records:
            return {}
        _, record = self._look_up(key, own=own)
        return dict(record.conditions) if record is not None else {}

    def versions(self, family: str, *, per_hardware: bool = False, per_parallelism: bool = False) -> dict[str, str]:
        """Of the engine and its packages when what :meth:`expected` finds was recorded; empty where nothing is."""
        key = self._key(family, per_hardware=per_hardware, per_parallelism=per_parallelism, by="", unquantized=False)
        _, record = self._look_up(key, own=True)
        return dict(record.provenance.get("versions", {})) if record is not None else {}

    def keep(self, family: str, *, observed: Mapping[str, Any], n: int) -> None:
        """Store what this cell showed on this hardware where baselines are being recorded; nothing is judged by it."""
        if self._recording.mode:
            key = BaselineKey(self._machine.key, self._engine.model.id, family, self.entry())
            conditions = of_record.of_engine(self._engine, own=True, arguments="all")
            self._record(key, plain(observed, "observed"), conditions, n)

    def attach(self, family: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """What a record says of NumPy arrays that are too large for it; they are written beside it, with it."""
        content = side_files.pack(arrays)
        reference = side_files.refer(family, content)
        self._session.side_files[reference["name"]] = content
        self._note(SIDE_FILE, {"name": reference["name"], "content": base64.b64encode(content).decode()})
        return {side_files.FIELD: reference}

    def attached(self, family: str, expected: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays that :meth:`attach` put beside a record.

        Raises:
            BaselineError: they are missing, or are not what was recorded.
        """
        reference = expected[side_files.FIELD]
        kept = self._session.side_files.get(str(reference["name"]))
        return side_files.unpack(kept if kept is not None else side_files.load(reference, self._folders(family)))

    def _folders(self, family: str) -> Iterator[Path]:
        file = BaselineKey(ANY, self._engine.model.id, family, "").path
        for directory in (self._recording.folder, BUNDLED):
            yield from sorted(directory.glob(f"*/{file.parent.name}"))

    def _is_own(self, by: str, *, unquantized: bool) -> bool:
        """Whether the record is this cell's, or that of another which is its reference."""
        spec = self._engine.spec
        return by in ("", spec.engine) and (not unquantized or spec.quantization == "none")

    def _look_up(self, asked: BaselineKey, *, own: bool) -> tuple[BaselineKey, Record | None]:
        """The record of what was asked, or else one filed under other words for the dtypes that this came to; and its key.

        A cell's own record is found whatever its dtypes: if they moved, that is what the verdict says. A reference is one only at
        the dtypes of this cell.
        """
        record = self._find(asked)
        if record is not None and (own or of_record.same_dtypes(record.conditions, self._engine)):
            return asked, record
        info = self._engine.info
        for entry in Entry.parse(asked.entry).other_words(info.dtype, info.kv_dtype):
            other = replace(asked, entry=str(entry))
            found = self._find(other)
            if found is not None and of_record.same_dtypes(found.conditions, self._engine):
                return other, found
        if record is None:
            return asked, None
        # The reference is recorded at other dtypes: what is missing is that of these.
        entry = replace(Entry.parse(asked.entry), dtype=info.dtype, kv_dtype=info.kv_dtype)
        return replace(asked, entry=str(entry)), None

    def _find(self, key: BaselineKey) -> Record | None:
        return self._session.records.get(key) or self._source.load(key)

    def _key(self, family: str, *, per_hardware: bool, per_parallelism: bool, by: str, unquantized: bool) -> BaselineKey:
        # What does not depend on the parallelism is the same on every number of accelerators.
        machine = self._machine if per_parallelism else self._machine.using(1)
        entry = Entry.of(self._engine.spec, by=by, unquantized=unquantized, per_parallelism=per_parallelism)
        return BaselineKey(machine.key if per_hardware else ANY, self._engine.model.id, family, str(entry))

    @property
    def _machine(self) -> Hardware:
        if self._engine.info.device == "cpu":
            return self._hardware.without_accelerators()
        return self._hardware.using(self._engine.spec.num_gpus)

    def _record(
        self, key: BaselineKey, expected: Any, conditions: Mapping[str, Any], n: int, *, replaced: Sequence[str] = ()
    ) -> None:
        if n < 1:
            raise BaselineError(f"nothing was observed for {key}: nothing is recorded")
        versions = {**self._engine.info.versions, **self._recording.versions}
        commit = working_commit(self._recording.root, baselines=self._recording.folder)
        facts = provenance(n=n, hardware=self._machine.describe(), versions=versions, commit=commit, argv=sys.argv)
        self._session.records[key] = Record(expected, dict(conditions), facts)
        told = {"key": asdict(key), "expected": expected, "conditions": conditions, "provenance": facts}
        self._note(RECORD, {**told, "replaced": list(replaced)})

    def _missing(self, key: BaselineKey, added: list[str], left_out: list[str]) -> MissingBaselineError:
        message = f"no baseline for {key}; record it with {' and '.join([*added, '--update-baselines=new'])}"
        if left_out:
            message += f", without {' and '.join(left_out)}"
        self._note(MISSING, {"key": asdict(key), "same_command": not left_out})
        return MissingBaselineError(message)
