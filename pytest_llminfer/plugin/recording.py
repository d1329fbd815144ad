"""Baselines as tests use them: compare with what is recorded, or record what was seen; the controller alone writes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.baselines import run_history
from pytest_llminfer.baselines.notes import MISSING, RECORD, USED
from pytest_llminfer.baselines.provenance import provenance, working_commit
from pytest_llminfer.baselines.record import BaselineKey, Difference, Record, differing, entry_name, plain
from pytest_llminfer.baselines.store import BaselineSource, LayeredSource, Store
from pytest_llminfer.plugin import options
from pytest_llminfer.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.plugin.judging import Judge
    from pytest_llminfer.spec import EngineSpec

STORE = pytest.StashKey[Store]()
RECORDED = pytest.StashKey["dict[BaselineKey, Record]"]()
"""What this process has recorded in this session: the cells that come later are judged by it."""
ANY = "any"


BUNDLED = Path(__file__).resolve().parent.parent / "bundled_baselines"
"""The baselines that come with an installed package; in a checkout the project's own folder is the same data."""


def open_store(config: pytest.Config) -> Store:
    """The project's own baselines, one store a session."""
    return config.stash.setdefault(STORE, Store(config.stash[options.STASH].baselines))


def open_source(config: pytest.Config) -> BaselineSource:
    """The session's baselines: the project's own first, then those that come with the package."""
    own = open_store(config)
    return LayeredSource([own, Store(BUNDLED)]) if BUNDLED.is_dir() else own


class Baseline:
    """The recorded expectations of one test's cell."""

    def __init__(
        self,
        *,
        item: pytest.Item,
        engine: Engine,
        source: BaselineSource,
        hardware: Hardware,
        settings: options.Options,
        judge: Judge,
    ) -> None:
        self._item, self._engine, self._source = item, engine, source
        self._hardware, self._settings, self._judge = hardware, settings, judge

    def expected(
        self,
        family: str,
        *,
        observed: Callable[[Mapping[str, Any] | None], Mapping[str, Any]],
        conditions: Mapping[str, Any],
        n: int | Callable[[Mapping[str, Any]], int],
        per_hardware: bool = False,
        per_parallelism: bool = False,
        by: str = "",
        unquantized: bool = False,
    ) -> Mapping[str, Any]:
        """What is recorded for this cell, to be judged against.

        observed: what this run would record, given what is recorded so far (None: nothing); called only to record.
        conditions: what must be equal for the comparison to be fair; a difference makes the test INVALID and names the field.
        n: how many things the record stands for, or how to read that from it.
        per_hardware: whether the expectation holds on this hardware only. per_parallelism: whether it depends on how the cell is
        split over accelerators, and on whether it is served; otherwise parallel and served cells are judged by the record of
        the plain one, and never write it. by: another engine whose record is the reference; only that engine writes it.
        unquantized: whether the reference is the record of the same engine with weights that are not quantized, which only that
        cell writes.

        Ends the test as a skip where a record was made or none exists; with ``--llminfer-strict`` a missing one fails.
        """
        spec, model = self._engine.spec, self._engine.model
        key = self._key(family, per_hardware=per_hardware, per_parallelism=per_parallelism, by=by, unquantized=unquantized)
        conditions = {**conditions, "model_sha256": model.sha256}
        again = key in self._item.config.stash.get(RECORDED, {})
        record = self._find(key)
        writes = by in ("", spec.engine) and (per_parallelism or not (spec.parallel or spec.serve))
        writes = writes and (not unquantized or spec.quantization == "none")
        # A second cell of this session with the same key is judged by the first.
        mode = self._settings.update_baselines if writes and not again else ""
        if mode == "all" or (mode == "new" and record is None):
            comparable = record is not None and not differing(record.conditions, conditions)
            expected = plain(observed(record.expected if record is not None and comparable else None), "expected")
            self._record(key, expected, conditions, n(expected) if callable(n) else n)
            raise pytest.skip.Exception(f"baseline recorded: {key}", _use_item_location=True)
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
        return self._settings.baselines / key.path.parent / run_history.FILE

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

    def _find(self, key: BaselineKey) -> Record | None:
        return self._item.config.stash.get(RECORDED, {}).get(key) or self._source.load(key)

    def keep(self, family: str, *, observed: Mapping[str, Any], n: int) -> None:
        """Store what this cell showed on this hardware where baselines are being recorded; nothing is judged by it."""
        if self._settings.update_baselines:
            key = BaselineKey(self._machine.key, self._engine.model.id, family, self._entry("", per_parallelism=True))
            self._record(key, plain(observed, "observed"), {"model_sha256": self._engine.model.sha256}, n)

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
        versions = {**self._engine.info.versions, "pytest": pytest.__version__}
        commit = working_commit(self._item.config.rootpath, baselines=self._settings.baselines)
        facts = provenance(n=n, hardware=self._machine.describe(), versions=versions, commit=commit, argv=sys.argv)
        self._item.config.stash.setdefault(RECORDED, {})[key] = Record(expected, dict(conditions), facts)
        self._note(RECORD, {"key": asdict(key), "expected": expected, "conditions": conditions, "provenance": facts})

    def _entry(self, by: str, *, per_parallelism: bool, unquantized: bool = False) -> str:
        spec, info = self._engine.spec, self._engine.info
        name = entry_name(by or spec.engine, "none" if unquantized else spec.quantization, info.dtype, info.kv_dtype)
        words = (["serve"] * spec.serve + spec.parallelism_words) if per_parallelism else []
        return "-".join([name, *words])

    def _note(self, name: str, value: Mapping[str, Any]) -> None:
        self._item.user_properties.append((name, json.dumps(value)))

    def _missing(self, key: BaselineKey, added: list[str], left_out: list[str]) -> BaseException:
        message = f"no baseline for {key}; record it with {' and '.join([*added, '--update-baselines=new'])}"
        if left_out:
            message += f", without {' and '.join(left_out)}"
        self._note(MISSING, {"key": asdict(key), "same_command": not left_out})
        if self._settings.strict:
            return pytest.fail.Exception(message, pytrace=False)
        return pytest.skip.Exception(message, _use_item_location=True)


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
