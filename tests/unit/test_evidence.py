"""What cells show together: corrected over cells, and added to the run history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pytest_llminfer.families.accuracy import section as evidence


def note(cell: str, p_value: float, outcome: str = "pass", past_run: dict[str, Any] | None = None) -> dict[str, Any]:
    shown = {"cell": cell, "against": "record", "outcome": outcome, "asked": 38, "of": 300}
    return {**shown, "p_value": p_value, "log_e": 0.7, "past_run": past_run}


def test_what_only_the_correction_over_judged_cells_rejects_fails_the_session() -> None:
    # Three of ten cells were judged: .004 is above .01 / 10, and Holm's adjusted p is .004 x 2.
    notes = [note("a", 0.0001, "fail"), note("b", 0.004, "inconclusive"), note("c", 0.5)]
    (line,) = evidence.settle(notes)
    assert line.startswith("ERROR: accuracy of b has dropped: p = 0.004, over 3 tests 0.008 by Holm")


def test_what_many_cells_do_not_bear_is_no_failure() -> None:
    assert evidence.settle([note("a", 0.004, "inconclusive"), *(note(str(number), 0.5) for number in range(3))]) == []


def test_what_is_invalid_is_not_failed_as_well() -> None:
    assert evidence.settle([note("a", 1e-9, "invalid")]) == []


def test_a_line_a_cell() -> None:
    rows = evidence.rows([note("a", 0.004), note("b", 0.5)])
    assert [row["p_value_over_tests"] for row in rows] == [0.008, 0.5]
    assert evidence.table(rows) == [
        ("cell", "against", "asked", "p-value", "over tests", "e-value", "verdict"),
        ("a", "record", "38 of 300", "0.004", "0.008", "2", "pass"),
        ("b", "record", "38 of 300", "0.5", "0.5", "2", "pass"),
    ]


def test_runs_are_written_and_a_history_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "any" / "reference" / "run_history.jsonl"
    past_run = {
        "path": str(path),
        "entry": "e",
        "record": "r",
        "outcomes": "10-",
        "p_value": 0.5,
        "log_e": 0.1,
        "versions": {"engine": "1"},
    }
    for count in (1, 2):
        assert evidence.settle([note("a", 0.5, past_run=past_run)]) == [f"run history: 1 past run added to {path}"]
        assert len(path.read_text().splitlines()) == count
    written = json.loads(path.read_text().splitlines()[0])
    assert written.pop("date").endswith("Z")
    assert written == {name: value for name, value in past_run.items() if name != "path"}
    blocked = tmp_path / "file"
    blocked.write_text("")
    # One that cannot be written does not cost the others theirs.
    lines = evidence.settle(
        [note("a", 0.5, past_run={**past_run, "path": str(blocked / "run_history.jsonl")}), note("b", 0.5, past_run=past_run)]
    )
    assert lines[0].startswith("ERROR: run history ")
    assert lines[1:] == [f"run history: 1 past run added to {path}"]
    assert len(path.read_text().splitlines()) == 3
