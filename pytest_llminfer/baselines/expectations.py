"""Baselines as families use them: judged by what is recorded, or recorded from what an engine shows.

A family says what to ask an engine (``observe``) and what must be equal for the comparison to be fair; where the expectation comes
from, and whether one is being made, is decided here. The test ends by an exception where nothing can be judged.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pytest_llminfer.baselines import run_history, side_files
from pytest_llminfer.baselines.bundled import BUNDLED
from pytest_llminfer.baselines.notes import MISSING, RECORD, SIDE_FILE, USED
from pytest_llminfer.baselines.provenance import provenance, working_commit
from pytest_llminfer.baselines.record import BaselineKey, Difference, Record, differing, entry_name, plain
from pytest_llminfer.errors import BaselineRecordedError, MissingBaselineError
from pytest_llminfer.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.baselines.store import BaselineSource
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.spec import EngineSpec

ANY = "any"


class Observe(Protocol):
    """What a family asks of an engine."""

    def __call__(self, engine: Engine, previous: Mapping[str, Any] | None, /) -> Mapping[str, Any]:
        """What a record of ``engine`` would hold. ``previous``: what is recorded so far; None where nothing is."""


@dataclass(slots=True)
class SessionRecords:
    """What this process has recorded in this session: the cells that come later are judged by it.

    side_files: their arrays by name; the process that writes them may not have done so yet.
    """

    records: dict[BaselineKey, Record] = field(default_factory=dict)
    side_files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recording:
    """Whether and where baselines are recorded.

    folder: of the project's baselines. mode: "" (nothing is recorded), "new" (what has no record yet) or "all". root: of the
    project, whose commit is part of a record's provenance. versions: of what runs the tests, beside the engine's.
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

    def expected(
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
    ) -> Mapping[str, Any]:
        """What is recorded for this cell, to be judged against.

        observe: asks an engine for what a record would hold; called with this cell's engine, and only to record.
        conditions: what must be equal for the comparison to be fair; a difference makes the test INVALID and names the field.
        n: how many things the record stands for, or how to read that from it.
        per_hardware: whether the expectation holds on this hardware only. per_parallelism: whether it depends on how the cell is
        split over accelerators, and on whether it is served; otherwise parallel and served cells are judged by the record of
        the plain one, and never write it. by: another engine whose record is the reference; only that engine writes it.
        unquantized: whether the reference is the record of the same engine with unquantized weights, which only that cell writes.

        Raises:
            BaselineRecordedError: a record was made of this run.
            MissingBaselineError: there is none, and none is being made.
        """
        spec, model = self._engine.spec, self._engine.model
        key = self._key(family, per_hardware=per_hardware, per_parallelism=per_parallelism, by=by, unquantized=unquantized)
        conditions = {**conditions, "model_sha256": model.sha256}
        again = key in self._session.records
        record = self._find(key)
        writes = by in ("", spec.engine) and (per_parallelism or not (spec.parallel or spec.serve))
        writes = writes and (not unquantized or spec.quantization == "none")
        # A second cell of this session with the same key is judged by the first.
        mode = self._recording.mode if writes and not again else ""
        if mode == "all" or (mode == "new" and record is None):
            comparable = record is not None and not differing(record.conditions, conditions)
            expected = plain(observe(self._engine, record.expected if record is not None and comparable else None), "expected")
            self._record(key, expected, conditions, n(expected) if callable(n) else n)
            raise BaselineRecordedError(f"baseline recorded: {key}; run again without --update-baselines to be judged by it")
        if record is None:
            added = [f"--engine={by}"] * bool(by) + ["--quantization=none"] * unquantized
            raise self._missing(key, added, left_out=[] if per_parallelism else _parallelism_options(spec))
        self._note(USED, asdict(key))
        if different := differing(record.conditions, conditions):
            self._judge(_unfair(key, record, different))
        return record.expected

    def entry(self) -> str:
        """The entry of this cell, with the words of its parallelism."""
        return self._entry("", per_parallelism=True)

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
        return self._find(key) is not None

    def versions(self, family: str, *, per_hardware: bool = False, per_parallelism: bool = False) -> dict[str, str]:
        """Of the engine and its packages when what :meth:`expected` finds was recorded; empty where nothing is."""
        record = self._find(self._key(family, per_hardware=per_hardware, per_parallelism=per_parallelism, by="", unquantized=False))
        return dict(record.provenance.get("versions", {})) if record is not None else {}

    def keep(self, family: str, *, observed: Mapping[str, Any], n: int) -> None:
        """Store what this cell showed on this hardware where baselines are being recorded; nothing is judged by it."""
        if self._recording.mode:
            key = BaselineKey(self._machine.key, self._engine.model.id, family, self._entry("", per_parallelism=True))
            self._record(key, plain(observed, "observed"), {"model_sha256": self._engine.model.sha256}, n)

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

    def _find(self, key: BaselineKey) -> Record | None:
        return self._session.records.get(key) or self._source.load(key)

    def _key(self, family: str, *, per_hardware: bool, per_parallelism: bool, by: str, unquantized: bool) -> BaselineKey:
        # What does not depend on the parallelism is the same on every number of accelerators.
        machine = self._machine if per_parallelism else self._machine.using(1)
        entry = self._entry(by, per_parallelism=per_parallelism, unquantized=unquantized)
        return BaselineKey(machine.key if per_hardware else ANY, self._engine.model.id, family, entry)

    @property
    def _machine(self) -> Hardware:
        if self._engine.info.device == "cpu":
            return self._hardware.without_accelerators()
        return self._hardware.using(self._engine.spec.num_gpus)

    def _record(self, key: BaselineKey, expected: Any, conditions: Mapping[str, Any], n: int) -> None:
        versions = {**self._engine.info.versions, **self._recording.versions}
        commit = working_commit(self._recording.root, baselines=self._recording.folder)
        facts = provenance(n=n, hardware=self._machine.describe(), versions=versions, commit=commit, argv=sys.argv)
        self._session.records[key] = Record(expected, dict(conditions), facts)
        self._note(RECORD, {"key": asdict(key), "expected": expected, "conditions": conditions, "provenance": facts})

    def _entry(self, by: str, *, per_parallelism: bool, unquantized: bool = False) -> str:
        spec, info = self._engine.spec, self._engine.info
        name = entry_name(by or spec.engine, "none" if unquantized else spec.quantization, info.dtype, info.kv_dtype)
        words = (["serve"] * spec.serve + spec.parallelism_words) if per_parallelism else []
        return "-".join([name, *words])

    def _missing(self, key: BaselineKey, added: list[str], left_out: list[str]) -> MissingBaselineError:
        message = f"no baseline for {key}; record it with {' and '.join([*added, '--update-baselines=new'])}"
        if left_out:
            message += f", without {' and '.join(left_out)}"
        self._note(MISSING, {"key": asdict(key), "same_command": not left_out})
        return MissingBaselineError(message)


def _parallelism_options(spec: EngineSpec) -> list[str]:
    """What makes a cell one that is judged by the record of the plain one."""
    counts = {"tp": spec.tp, "pp": spec.pp, "dp": spec.dp}
    return ["--serve"] * spec.serve + [f"--{name}={count}" for name, count in counts.items() if count > 1]


def _unfair(key: BaselineKey, record: Record, different: list[Difference]) -> Verdict:
    return Verdict(
        outcome=Outcome.INVALID,
        claim=f"this run may be compared with the baseline {key}",
        key="not comparable",
        measurements=(),
        threshold="every recorded condition is equal",
        threshold_source=f"the record of {record.provenance.get('date', 'unknown date')}",
        smallest_detectable="exact",
        advice="restore the condition named above, or record a new baseline with --update-baselines",
        details=tuple(str(difference) for difference in different),
    )
