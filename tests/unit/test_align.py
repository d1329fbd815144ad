"""Columns as a terminal shows them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.report.align import align, width, writable


def test_columns_are_as_wide_as_their_widest_field() -> None:
    assert align([("cell", "n"), ("vllm-tp2", "3"), ("a", "")]) == ["cell      n", "vllm-tp2  3", "a"]
    assert align([("a", "b"), ("cc", "d")], rule="-") == ["a   b", "--  -", "cc  d"]
    assert align([]) == align([], rule="-") == []


@pytest.mark.parametrize(
    ("text", "cells"),
    [("abc", 3), ("µ±≤", 3), ("模型", 4), ("ｆｐ８", 6), ("e\N{COMBINING ACUTE ACCENT}", 1), ("\u200bx", 1), ("한글", 4)],
)
def test_wide_characters_take_two_cells_and_marks_none(text: str, cells: int) -> None:
    assert width(text) == cells


def test_wide_fields_do_not_shift_the_columns_after_them() -> None:
    lines = align([("cell", "n"), ("模型", "1"), ("transformers", "2"), ("cafe\N{COMBINING ACUTE ACCENT}", "3")])
    assert {width(line[: line.rindex(digit)]) for line, digit in zip(lines[1:], "123", strict=True)} == {14}


FIELD = st.text(st.sampled_from("ab模é\N{COMBINING ACUTE ACCENT} "), max_size=5)


@given(st.lists(st.tuples(FIELD, FIELD, st.just("|")), min_size=1, max_size=5))
def test_the_last_column_begins_in_one_place(rows: list[tuple[str, str, str]]) -> None:
    assert len({width(line[:-1]) for line in align(rows)}) == 1


def test_rows_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        align([("a", "b"), ("c",)])


def test_what_the_terminal_does_not_have_is_replaced() -> None:
    assert writable("±8 ≤ 模", "ascii") == "+-8 <= ?"
    assert writable("±8", "latin-1") == "±8"
