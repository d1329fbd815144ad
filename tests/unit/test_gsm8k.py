from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llminfer.datasets.gsm8k import EXTRACTORS, Graded, Problem, extract_flexible, extract_strict, gold, grade, knows
from pytest_llminfer.errors import DatasetError

VERSION_1 = {"strict": "####@1", "flexible": "last-number@1"}


def problem(answer: str = "2 + 16 = 18\n#### 18") -> Problem:
    return Problem("one", "How many?", answer)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 18 eggs\n#### 18", "18"),
        ("#### 18\n#### 20", "18"),  # lm-eval takes the first
        ("#### -5", "-5"),
        ("#### 1,450,000", "1450000"),
        ("#### 18.00", "18"),
        ("#### 18.", "18"),
        ("#### 0.5 of it", "0.5"),
        ("the #### then #### 7", "7"),
        ("#### $18", None),  # not the form that was asked for
        ("####18", None),
        ("18", None),
        ("#### ,", None),
        ("#### .", None),
        ("#### 1.2.3", None),
        ("", None),
    ],
)
def test_strict_reads_the_first_marked_number(text: str, value: str | None) -> None:
    assert extract_strict(text) == (None if value is None else Decimal(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She makes 9 * 2 = $18 a day", "18"),
        ("first 3, then 18.", "18"),
        ("it costs $1,000.50", "1000.50"),
        ("-7", "-7"),
        ("x = 5-3", "-3"),  # as lm-eval reads it
        ("#### 18\nThat is 2 eggs each for 9 people", "9"),
        ("between 3 and ...", None),  # the last number-like piece is no number
        ("no digits here", None),
        ("", None),
    ],
)
def test_flexible_reads_the_last_number(text: str, value: str | None) -> None:
    assert extract_flexible(text) == (None if value is None else Decimal(value))


@given(st.text())
@example("#### " + "9" * 5000)
@example("$,.-" * 1000)
@example("#### ٣")
@example("\ud800 #### 1")
def test_no_text_breaks_the_reading(text: str) -> None:
    for value in (extract_strict(text), extract_flexible(text)):
        assert value is None or isinstance(value, Decimal)
    grade(problem(), text)


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_read_back(number: int) -> None:
    for written in (f"{number}", f"{number:,}", f"{number}.00", f"{number:,}."):
        assert extract_strict(f"#### {written}") == number
        assert extract_flexible(f"the answer is {written}") == number


@given(st.integers(0, 10**9))
def test_currency_does_not_matter(number: int) -> None:
    assert extract_flexible(f"it is ${number:,}") == number


@pytest.mark.parametrize("text", ["#### 18", "#### 18.00", "#### 18.", "so it is #### 018"])
def test_a_right_answer_is_right_by_value(text: str) -> None:
    assert grade(problem(), text) == Graded(strict=True, flexible=True, format_miss=False)


def test_a_right_answer_without_the_form_is_a_format_miss() -> None:
    assert grade(problem(), "That makes $18.") == Graded(strict=False, flexible=True, format_miss=True)


def test_a_wrong_answer_in_the_right_form_is_wrong() -> None:
    assert grade(problem(), "#### 19") == Graded(strict=False, flexible=False, format_miss=False)


def test_the_two_readings_differ_where_text_follows() -> None:
    assert grade(problem(), "#### 18\nThat is 9 each.") == Graded(strict=True, flexible=False, format_miss=False)


def test_a_solution_without_a_number_is_refused() -> None:
    with pytest.raises(DatasetError, match="one has no line '#### <number>'"):
        gold(problem("eighteen"))


def test_gold_is_exact() -> None:
    assert gold(problem("#### 1,234.10")) == Decimal("1234.1")


def test_extractors_are_versioned_and_old_ones_kept() -> None:
    assert EXTRACTORS == {"strict": "####@2", "flexible": "last-number@2"}
    assert knows(EXTRACTORS)
    assert knows(VERSION_1)
    assert not knows({"strict": "####@3", "flexible": "last-number@1"})
    assert not knows({})


def test_an_answer_is_read_by_the_versions_that_its_record_was_made_with() -> None:
    assert grade(problem("#### 9500"), "#### 9{,}500", VERSION_1) == Graded(strict=False, flexible=False, format_miss=False)
    assert grade(problem("#### 9500"), "#### 9{,}500") == Graded(strict=True, flexible=True, format_miss=False)
    assert grade(problem("#### 12"), "pages 10-12", VERSION_1).flexible is False
    assert grade(problem("#### 12"), "pages 10-12").flexible is True
