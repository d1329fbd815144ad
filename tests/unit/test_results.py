"""The result of a session: a round trip through JSON, and the schema that describes it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.hardware import Hardware
from pytest_llminfer.report.files import JSON_SCHEMA
from pytest_llminfer.report.result import CellResult, Load, OptionValue, SessionResult, TestResult
from pytest_llminfer.report.table import STATUSES
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

SCHEMA = json.loads(JSON_SCHEMA.read_text(encoding="utf-8"))
VALIDATOR = Draft202012Validator(SCHEMA)
WORDS = ("NaN", "Infinity", "-Infinity")
TEXT = st.text(st.characters(exclude_categories=()), max_size=6)
NUMBER = st.one_of(st.integers(-(2**70), 2**70), st.floats(allow_nan=False))
VERSIONS = st.dictionaries(TEXT, TEXT, max_size=2)
SECONDS = st.dictionaries(TEXT, st.floats(0, 1e9), max_size=2)
MEASUREMENT = st.builds(
    Measurement,
    name=TEXT,
    value=st.one_of(NUMBER, TEXT),
    unit=TEXT,
    n=st.none() | st.integers(0),
    spread=TEXT,
    baseline=st.none() | NUMBER,
    limit=st.none() | NUMBER,
    shown=TEXT,
)
VERDICT = st.builds(
    Verdict,
    outcome=st.sampled_from(list(Outcome)),
    measurements=st.lists(MEASUREMENT, max_size=2).map(tuple),
    details=st.lists(TEXT, max_size=2).map(tuple),
    **dict.fromkeys(("claim", "key", "threshold", "threshold_source", "smallest_detectable", "advice"), TEXT),
)
KEYS = st.lists(TEXT, max_size=2).map(tuple)
TEST = st.builds(
    TestResult,
    outcome=st.sampled_from(STATUSES),
    failed=st.booleans(),
    seconds=SECONDS,
    verdicts=st.lists(VERDICT, max_size=2).map(tuple),
    **dict.fromkeys(("node_id", "family", "cell", "reason"), TEXT),
    **dict.fromkeys(("baselines_used", "baselines_missing", "baselines_recorded"), KEYS),
)
CELL = st.builds(
    CellResult,
    spec=st.none() | st.just(EngineSpec("vllm", tp=2).to_dict()),
    versions=VERSIONS,
    device_count=st.integers(0, 8),
    loads=st.lists(st.builds(Load, phases=SECONDS, afresh=st.booleans()), max_size=2).map(tuple),
    **dict.fromkeys(("id", "device", "device_name", "dtype", "kv_dtype"), TEXT),
)
ROW = st.fixed_dictionaries(
    {"cell": TEXT, "against": st.just("record"), "asked": st.just(3), "of": st.just(5), "outcome": st.just("pass")}
    | dict.fromkeys(("p_value", "log_e", "p_value_over_tests"), st.floats(allow_nan=False))
)
SESSION = st.builds(
    SessionResult,
    started=st.just("2026-01-02T03:04:05Z"),
    ended=st.just("2026-01-02T03:04:06Z"),
    exit_status=st.integers(0, 5),
    hardware=st.just({**{each.name: getattr(Hardware("", 0, "c", 2), each.name) for each in fields(Hardware)}, "key": "c-2-cores"}),
    options=st.lists(
        st.builds(OptionValue, TEXT, TEXT | st.booleans() | KEYS, st.sampled_from(["command line", "ini", "default"])), max_size=2
    ).map(tuple),
    cells=st.lists(CELL, max_size=2).map(tuple),
    tests=st.lists(TEST, max_size=2).map(tuple),
    sections=st.dictionaries(st.just("accuracy"), st.lists(ROW, max_size=2).map(tuple), max_size=1),
    messages=KEYS,
    schema=st.just(2),
    **dict.fromkeys(("pytest", "llminfer", "python", "command"), TEXT),
)


def through_json(data: Any) -> Any:
    return json.loads(json.dumps(data, allow_nan=False))


def holds_a_word(verdict: Verdict) -> bool:
    """Text that is the very word of a number is read as the number."""
    return any(measurement.value in WORDS for measurement in verdict.measurements if isinstance(measurement.value, str))


@given(VERDICT)
def test_a_verdict_is_whole_after_a_round_trip(verdict: Verdict) -> None:
    if holds_a_word(verdict):
        return
    again = Verdict.from_dict(through_json(verdict.to_dict()))
    assert again == verdict
    assert str(again) == str(verdict)


@given(SESSION)
def test_a_result_is_whole_after_a_round_trip_and_is_what_the_schema_says(result: SessionResult) -> None:
    if any(holds_a_word(verdict) for test in result.tests for verdict in test.verdicts):
        return
    data = through_json(result.to_dict())
    assert next(iter(data)) == "schema"
    VALIDATOR.validate(data)
    assert SessionResult.from_dict(data) == result


def test_numbers_of_numpy_and_those_that_are_not_finite_cross_as_numbers() -> None:
    value: Any
    for value in (np.float64(0.5), np.float32(0.5), np.int64(3), np.uint8(3), math.inf, -math.inf, np.float32("inf")):
        data = through_json(Measurement("m", value, baseline=value, limit=value).to_dict())
        again = Measurement.from_dict(data)
        assert (again.value, again.baseline, again.limit) == (value, value, value)
        assert type(again.value) in (int, float)
    assert math.isnan(float(Measurement.from_dict(through_json(Measurement("m", float("nan")).to_dict())).value))


def test_a_baseline_and_a_limit_are_data_and_no_part_of_the_text() -> None:
    plain = Measurement("speed", 12.5, "tokens/s", 5, "MAD 0.1")
    assert str(replace(plain, baseline=13.0, limit=12.1)) == str(plain) == "speed: 12.5 tokens/s (n=5, MAD 0.1)"
    share = Measurement("same top-1", 0.9712, n=5, limit=0.9, shown="97.12%")
    assert str(share) == str(replace(share, value="97.12%", shown="")) == "same top-1: 97.12% (n=5)"


SOME = SessionResult(
    started="2026-01-02T03:04:05Z",
    ended="2026-01-02T03:04:06Z",
    exit_status=0,
    pytest="9",
    llminfer="1",
    python="3",
    command="pytest",
    hardware={"accelerator": "", "count": 0, "cpu": "c", "cores": 1, "memory_mib": 0, "driver": "", "key": "c-1-cores"},
)


def test_the_schema_is_one_and_refuses_what_is_wrong() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    data = SOME.to_dict()
    VALIDATOR.validate(data)
    wrong: dict[str, Any]
    for wrong in ({"exit_status": "0"}, {"schema": 1}, {"started": "yesterday"}, {"hardware": {}}, {"cells": [{"id": "a"}]}):
        assert not VALIDATOR.is_valid({**data, **wrong}), wrong
    assert not VALIDATOR.is_valid({name: value for name, value in data.items() if name != "tests"})


NAMED = {
    ("measurement", "spread"): "uncertainty",
    ("verdict", "threshold"): "limit",
    ("verdict", "threshold_source"): "limit_source",
    ("verdict", "smallest_detectable"): "minimum_detectable_effect",
}
"""Fields whose name in the data is another."""


def test_a_result_of_the_first_version_is_read_and_one_without_a_field_is_not() -> None:
    verdict = Verdict(Outcome.PASS, "c", "k", (Measurement("m", 1.5, "s", 3, "MAD 0.1"),), "at most 2", "a record", "0.5", "")
    result = replace(SOME, tests=(TestResult("t", "f", "c", "pass", failed=False, seconds={}, verdicts=(verdict,)),))
    data = through_json(result.to_dict())
    for verdict in (verdict for test in data["tests"] for verdict in test["verdicts"]):
        for (of, before), name in NAMED.items():
            for holder in verdict["measurements"] if of == "measurement" else [verdict]:
                holder[before] = holder.pop(name)
    old = {**data, "schema": 1}
    assert SessionResult.from_dict(old) == result
    del old["tests"][0]["verdicts"][0]["threshold"]
    with pytest.raises(BadInputError, match="the field 'limit' is missing"):
        SessionResult.from_dict(old)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("measurement", Measurement),
        ("verdict", Verdict),
        ("load", Load),
        ("cell", CellResult),
        ("test", TestResult),
        ("option", OptionValue),
    ],
)
def test_the_schema_has_every_field_and_no_other(name: str, cls: type) -> None:
    names = {NAMED.get((name, each.name), each.name) for each in fields(cls)}
    assert set(SCHEMA["$defs"][name]["properties"]) == set(SCHEMA["$defs"][name]["required"]) == names


def test_the_schema_has_every_field_of_the_session_and_of_the_hardware() -> None:
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == {each.name for each in fields(SessionResult)}
    assert set(SCHEMA["$defs"]["hardware"]["properties"]) == {each.name for each in fields(Hardware)} | {"key"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 3}, "a result of a newer version (schema 3): upgrade pytest-llminfer"),
        ({"schema": "1"}, "no result of a session: its 'schema' is '1'"),
        ({"tests": [{"node_id": "a"}]}, "no result of a session: the field 'baselines_used' is missing"),
        ({"tests": 5}, "no result of a session: 'int' object is not iterable"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(message)) as caught:
        SessionResult.from_dict({**SOME.to_dict(), **change})
    assert str(caught.value) == message


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert SessionResult.from_dict({**SOME.to_dict(), "weather": "fair"}) == SOME
