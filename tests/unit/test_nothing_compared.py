"""What compared nothing does not look like what changed nothing, and what has nothing to compare is no alarm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.baselines.record import BaselineKey, Record
from pytest_llminfer.baselines.store import Store
from pytest_llminfer.plugin.nothing_compared import of_cells, of_session
from pytest_llminfer.report.gathering import AgainstRecords
from pytest_llminfer.report.result import TestResult
from pytest_llminfer.spec import EngineSpec

if TYPE_CHECKING:
    from pathlib import Path


def result_of(outcome: str, **fields: Any) -> TestResult:
    return TestResult("test_x.py::test_x", "x", "vllm", outcome, failed=False, seconds={}, **fields)


@pytest.mark.parametrize(
    ("tests", "told"),
    [
        ([], ""),
        ([("pass", {}), ("skip", {"baselines_missing": ("k",)})], ""),
        ([("fail", {})], ""),
        ([("skip", {"baselines_recorded": ("k",)}), ("skip", {"baselines_missing": ("k",)})], ""),
        ([("skip", {}), ("skip", {"baselines_missing": ("k",)})], "nothing was compared: there is no baseline for what was asked"),
        ([("skip", {})], "nothing was compared: every test was skipped (-rs shows why)"),
    ],
)
def test_a_session_whose_tests_were_all_skipped_says_so(tests: list[tuple[str, dict[str, Any]]], told: str) -> None:
    assert of_session([result_of(outcome, **fields) for outcome, fields in tests]) == told


def told(folder: Path, cell: str, seen: AgainstRecords, *recorded: str, family: str = "tokens") -> list[str]:
    store = Store(folder)
    for entry in recorded:
        store.stage(BaselineKey("any", "m", family, entry), Record({"a": 1}, {}, {}))
    store.write()
    return of_cells({cell: seen}, {cell: EngineSpec.parse(cell).to_dict()}, {cell: "m"}, own=folder)


def missing(entry: str) -> AgainstRecords:
    return AgainstRecords(missing=[BaselineKey("any", "m", "tokens", entry)])


def test_a_cell_whose_tests_did_not_come_to_ask_for_its_records_is_an_error(tmp_path: Path) -> None:
    (line,) = told(tmp_path, "vllm", AgainstRecords(unasked=2), "vllm-none-auto-kv_auto")
    assert line == "ERROR: nothing recorded was compared in the cell vllm, which has any/m/tokens/vllm-none-auto-kv_auto"


def test_a_cell_whose_records_are_of_dtypes_that_nobody_asked_for_now_is_an_error(tmp_path: Path) -> None:
    (line,) = told(tmp_path, "vllm", missing("vllm-none-auto-kv_auto"), "vllm-none-bf16-kv_auto")
    assert line.endswith("in the cell vllm, which has any/m/tokens/vllm-none-bf16-kv_auto")


@pytest.mark.parametrize(
    ("cell", "seen", "recorded"),
    [
        ("vllm", AgainstRecords(compared=True, unasked=1), "vllm-none-auto-kv_auto"),
        ("vllm", AgainstRecords(unasked=1), "vllm-none-fp16-kv_auto"),
        ("vllm", AgainstRecords(unasked=1), "vllm-awq-auto-kv_auto"),
        ("vllm", missing("vllm-none-auto-kv_auto"), "transformers-none-auto-kv_auto"),
        ("vllm", missing("transformers-none-auto-kv_auto"), "transformers-none-fp16-kv_auto"),
        ("vllm-fp16", missing("vllm-none-fp16-kv_auto"), "vllm-none-auto-kv_auto"),
        ("vllm-awq", missing("vllm-awq-auto-kv_auto"), "vllm-none-bf16-kv_auto"),
        ("vllm-tp2", missing("vllm-none-auto-kv_auto-tp2"), "vllm-none-bf16-kv_auto"),
    ],
)
def test_a_cell_that_is_new_or_was_compared_is_none(tmp_path: Path, cell: str, seen: AgainstRecords, recorded: str) -> None:
    assert told(tmp_path, cell, seen, recorded) == []


def test_a_broken_file_is_told_by_the_test_that_asks_for_it(tmp_path: Path) -> None:
    path = tmp_path / "any" / "m" / "tokens.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert of_cells({"vllm": AgainstRecords(unasked=1)}, {"vllm": EngineSpec("vllm").to_dict()}, {"vllm": "m"}, own=tmp_path) == []
