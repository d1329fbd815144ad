"""The summary table, literally."""

from __future__ import annotations

import pytest

from pytest_llminfer.errors import InvalidSpecError
from pytest_llminfer.report.table import STATUSES, TableEntry, merge, render_table
from pytest_llminfer.verdict import Outcome

FAMILIES = ("gsm8k", "kv_cache", "memory")
ROWS = {
    "transformers": {"gsm8k": TableEntry("pass", "88.3 %"), "kv_cache": TableEntry(Outcome.PASS, "exact", skipped=1)},
    "transformers-nf4-tp2": {"gsm8k": TableEntry("fail", "−4.1 ± 0.3 %"), "memory": TableEntry("skip")},
}


def test_a_table_is_aligned_and_complete() -> None:
    assert render_table(ROWS, FAMILIES, 80) == [
        "cell                  gsm8k              kv_cache            memory",
        "────────────────────  ─────────────────  ──────────────────  ──────",
        "transformers          pass 88.3 %        pass exact +1 skip  -",
        "transformers-nf4-tp2  FAIL −4.1 ± 0.3 %  -                   skip",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "no such encoding"])
def test_a_terminal_without_unicode_gets_ascii(encoding: str) -> None:
    lines = render_table(ROWS, FAMILIES, 80, encoding=encoding)
    assert all(line.isascii() for line in lines)
    assert lines[3] == "transformers-nf4-tp2  FAIL -4.1 +- 0.3 %  -                   skip"
    assert lines[1] == "--------------------  ------------------  ------------------  ------"


def test_latin_1_keeps_what_it_has() -> None:
    assert "FAIL -4.1 ± 0.3 %" in render_table(ROWS, FAMILIES, 80, encoding="latin-1")[3]


def test_a_narrow_terminal_gets_the_columns_below_each_other() -> None:
    lines = render_table(ROWS, FAMILIES, 45)
    assert max(map(len, lines)) <= 45
    assert lines[4] == ""
    assert lines[5] == "cell                  kv_cache"
    assert [line for line in lines if line.startswith("cell")] == [lines[0], lines[5], lines[10]]


def test_a_name_is_never_shortened() -> None:
    lines = render_table({"a" * 50: ROWS["transformers"]}, FAMILIES, 20)
    assert sum("a" * 50 in line for line in lines) == len(FAMILIES)


def test_a_long_or_broken_key_is_kept_to_one_short_line() -> None:
    assert str(TableEntry("invalid", "a\nb")) == "INVALID a b"
    assert str(TableEntry("error", "x" * 100)) == f"ERROR {'x' * 27}…"


def test_no_rows_or_no_families_is_no_table() -> None:
    assert render_table({}, FAMILIES, 80) == []
    assert render_table(ROWS, [], 80) == []


@pytest.mark.parametrize("index", range(len(STATUSES)))
def test_the_worst_status_wins_with_its_own_key(index: int) -> None:
    entries = [TableEntry(status, status) for status in STATUSES[1 : index + 1]]
    assert merge([*entries, *reversed(entries), TableEntry(STATUSES[index], "later")]).status == STATUSES[index]
    if entries:
        assert merge([*entries, TableEntry(STATUSES[index], "later")]).key == STATUSES[index]


def test_every_outcome_of_a_verdict_is_a_status() -> None:
    assert {str(outcome) for outcome in Outcome} <= set(STATUSES)
    with pytest.raises(InvalidSpecError, match=r"unknown status 'passed'.* Did you mean 'pass'"):
        TableEntry("passed")


def test_a_skip_hides_no_number_and_is_counted() -> None:
    skip = TableEntry("skip", "no logits")
    assert merge([skip, TableEntry("pass", "exact"), skip]) == TableEntry("pass", "exact", skipped=2)
    assert merge([TableEntry("pass", skipped=2), skip]) == TableEntry("pass", skipped=3)
    assert merge([skip, skip]) == skip
    with pytest.raises(ValueError, match="empty"):
        merge([])
