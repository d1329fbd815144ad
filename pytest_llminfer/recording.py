"""Baselines as tests use them: compare with what is recorded, or record what was seen; the controller alone writes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer import options
from pytest_llminfer.baselines.provenance import provenance, working_commit
from pytest_llminfer.baselines.record import BaselineKey, Difference, Record, differing, entry_name, plain
from pytest_llminfer.baselines.store import BaselineSource, LayeredSource, Store
from pytest_llminfer.session_report import MISSING, RECORD, USED
from pytest_llminfer.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.hardware import Hardware
    from pytest_llminfer.judging import Judge

STORE = pytest.StashKey[Store]()
ANY = "any"


BUNDLED = Path(__file__).resolve().parent / "bundled_baselines"
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
    ) -> Mapping[str, Any]:
        """What is recorded for this cell, to be judged against.

        observed: what this run would record, given what is recorded so far (None: nothing); called only to record.
        conditions: what must be equal for the comparison to be fair; a difference makes the test INVALID and names the field.
        n: how many things the record stands for, or how to read that from it.
        per_hardware: whether the expectation holds on this hardware only.

        Ends the test as a skip where a record was made or none exists; with ``--llminfer-strict`` a missing one fails.
        """
        spec, info, model = self._engine.spec, self._engine.info, self._engine.model
        machine = self._hardware.without_accelerators() if info.device == "cpu" else self._hardware.using(spec.num_gpus)
        hardware = machine.key if per_hardware else ANY
        key = BaselineKey(hardware, model.id, family, entry_name(spec.engine, spec.quantization, info.dtype, info.kv_dtype))
        conditions = {**conditions, "model_sha256": model.sha256}
        record = self._source.load(key)
        # Parallel cells share the single-GPU entry: they are judged by it and never write it.
        mode = self._settings.update_baselines if spec.num_gpus == 1 else ""
        if mode == "all" or (mode == "new" and record is None):
            comparable = record is not None and not differing(record.conditions, conditions)
            expected = plain(observed(record.expected if record is not None and comparable else None), "expected")
            versions = {**info.versions, "pytest": pytest.__version__}
            commit = working_commit(self._item.config.rootpath, baselines=self._settings.baselines)
            facts = provenance(
                n=n(expected) if callable(n) else n, hardware=machine.describe(), versions=versions, commit=commit, argv=sys.argv
            )
            self._note(RECORD, {"key": asdict(key), "expected": expected, "conditions": conditions, "provenance": facts})
            raise pytest.skip.Exception(f"baseline recorded: {key}", _use_item_location=True)
        if record is None:
            raise self._missing(key)
        self._note(USED, asdict(key))
        if different := differing(record.conditions, conditions):
            self._judge(_unfair(key, record, different))
        return record.expected

    def _note(self, name: str, value: Mapping[str, Any]) -> None:
        self._item.user_properties.append((name, json.dumps(value)))

    def _missing(self, key: BaselineKey) -> BaseException:
        message = f"no baseline for {key}; record it with --update-baselines=new"
        self._note(MISSING, asdict(key))
        if self._settings.strict:
            return pytest.fail.Exception(message, pytrace=False)
        return pytest.skip.Exception(message, _use_item_location=True)


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
