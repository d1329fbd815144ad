"""What version 1 of the two readings of an answer holds for any text, and that no text makes it slow."""

from __future__ import annotations

import re
import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llminfer.datasets.gsm8k import Graded, Problem, extract_flexible, extract_strict, grade

VERSION_1 = {"strict": "####@1", "flexible": "last-number@1"}
MARKS = "$,.-"
NEAR_NUMBERS = st.text(alphabet="#### $,.-0123456789\n a\u0663\uff13\u2212\u00b2", max_size=60)
TEXTS = st.one_of(st.text(), NEAR_NUMBERS)
NO_NUMBER = st.text(alphabet=st.characters(exclude_characters="0123456789$,.-#"))
"""Holds nothing that either reading could take for a part of a number."""

LONG = 100_000
SECONDS = 0.75
"""Of the processor; every long text takes about a tenth of this, and one that is read again and again takes minutes."""


def documented(piece: Any) -> Any:
    """The number in a piece by the words of the docstring, digit by digit: no $, no commas, no final full stop; else none."""
    kept = [character for character in piece if character not in "$,"]
    if kept and kept[-1] == ".":
        kept.pop()
    sign = -1 if kept[:1] == ["-"] else 1
    whole, point, part = "".join(kept[1:] if sign < 0 else kept).partition(".")
    if not whole + part or not all("0" <= digit <= "9" for digit in whole + part):
        return None
    assert point or not part
    value = Fraction(0)
    for digit in whole + part:
        value = 10 * value + "0123456789".index(digit)
    return sign * value / 10 ** len(part)


def same(read: Decimal | None, expected: Any) -> Any:
    return (read is None and expected is None) or (read is not None and expected is not None and Fraction(read) == expected)


def marked(text: str) -> Any:
    """The run of digits, points and commas after the first mark that has one, found without a regular expression."""
    start = text.find("#### ")
    while start >= 0:
        end = begin = start + len("#### ")
        end += text[end : end + 1] == "-"
        first = end
        while end < len(text) and text[end] in "0123456789.,":
            end += 1
        if end > first:
            return text[begin:end]
        start = text.find("#### ", start + 1)
    return None


def last_like(text: str) -> Any:
    """The last number-like piece: two or more of digits, $, points and commas, or one digit, with a hyphen before it or not."""
    place, found = 0, None
    while place < len(text):
        begin = place + (text[place] == "-")
        end = begin
        while end < len(text) and text[end] in "0123456789.,$":
            end += 1
        if end - begin >= 2 or (end - begin == 1 and text[begin] in "0123456789"):
            found, place = text[place:end], end
        else:
            place += 1
    return found


@given(TEXTS)
@example("#### 1.2.3")
@example("#### -")
@example("#### -.")
@example("#### .5")
@example("#### 18..")
@example("#### 1,2,3.")
@example("####  18 #### 19")
@example("#### #### 19")
def test_strict_is_the_documented_number(text: str) -> None:
    piece = marked(text)
    assert same(extract_strict(text), None if piece is None else documented(piece))


@given(TEXTS)
@example("-$")
@example("--5")
@example("5-3")
@example("-$-5")
@example("$5$")
@example("a5b.c")
@example("7 and ...")
@example("1.2.3")
def test_flexible_is_the_documented_number(text: str) -> None:
    piece = last_like(text)
    assert same(extract_flexible(text), None if piece is None else documented(piece))


@given(TEXTS)
def test_any_text_has_a_grade(text: str) -> None:
    graded = grade(Problem("one", "How many?", "#### 18"), text, VERSION_1)
    assert isinstance(graded, Graded)
    assert graded.strict == (extract_strict(text) == 18)
    assert graded.format_miss == (extract_strict(text) is None)
    assert not (graded.strict and graded.format_miss)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_a_written_answer_is_read_back_by_both(number: Decimal) -> None:
    text = f"#### {number:f}"
    assert extract_strict(text) == extract_flexible(text) == number
    again = f"#### {extract_strict(text):f}"
    assert extract_strict(again) == extract_flexible(again) == number


@given(TEXTS, NO_NUMBER)
def test_what_holds_no_number_may_follow_or_precede(text: str, words: str) -> None:
    assert extract_flexible(f"{text} {words}") == extract_flexible(text)
    assert extract_strict(f"{words} {text}") == extract_strict(text)
    assert extract_flexible(f"{words} {text}") == extract_flexible(text)


@given(NO_NUMBER, st.integers(-(10**9), 10**9), TEXTS)
def test_strict_takes_the_first_number(words: str, number: int, more: str) -> None:
    assert extract_strict(f"{words} #### {number:,} {more}") == number


@given(TEXTS, st.integers(-(10**9), 10**9))
def test_flexible_takes_the_last_number(text: str, number: int) -> None:
    assert extract_flexible(f"{text} is {number:,}") == number


@given(NO_NUMBER)
def test_without_a_number_there_is_none(words: str) -> None:
    assert extract_strict(f"#### {words}") is None
    assert extract_flexible(words) is None


@pytest.mark.parametrize("digits", ["\u0661\u0668", "\uff11\uff18", "\u0967\u096e", "\u2460", "\u00b2", "\u00bd", "\U0001d7d9"])
def test_digits_of_other_scripts_are_no_digits(digits: str) -> None:
    assert extract_strict(f"#### {digits}") is None
    assert extract_flexible(digits) is None
    assert extract_strict(f"#### 7{digits}") == extract_flexible(f"7{digits}") == 7


@pytest.mark.parametrize("minus", ["\u2212", "\u2013", "\uff0d", "\u2011"])
def test_a_minus_that_is_no_hyphen_is_not_read(minus: str) -> None:
    assert extract_strict(f"#### {minus}5") is None
    assert extract_flexible(f"{minus}5") == 5


@pytest.mark.parametrize(
    "piece", [*MARKS, "9", "$-", "-$", "9-", "$ ", ".,", "#", "#### ", "####", "#### -", "9 ", "-9", "1.2.", "٣"]
)
@pytest.mark.parametrize("before", ["", "#### ", "#### 7 "])
def test_long_texts_are_read_in_linear_time(piece: str, before: str) -> None:
    text = before + piece * (5 * LONG // len(piece))
    start = time.process_time()
    strict, flexible = extract_strict(text), extract_flexible(text)
    assert time.process_time() - start < SECONDS
    assert strict is None or strict.is_finite()
    assert flexible is None or flexible.is_finite()


def test_a_million_digits_are_a_number() -> None:
    text = "#### " + "9" * (10 * LONG)
    start = time.process_time()
    number = extract_strict(text)
    assert number == extract_flexible(text)
    assert number is not None
    assert number.adjusted() == 10 * LONG - 1
    assert grade(Problem("one", "How many?", text), text) == Graded(strict=True, flexible=True, format_miss=False)
    assert not grade(Problem("one", "How many?", "#### 18"), text).strict
    assert time.process_time() - start < SECONDS


def test_long_numbers_are_told_apart_by_their_last_digit() -> None:
    number = "1" * LONG
    problem = Problem("one", "How many?", f"#### {number}2")
    assert grade(problem, f"#### {number}2.{'0' * LONG}").strict
    assert not grade(problem, f"#### {number}3").strict
    assert not grade(problem, f"#### {number}2.{'0' * LONG}1").strict


def test_a_reading_that_goes_back_is_seen_to_be_slow() -> None:
    """The bound tells: a pattern that tries every split of a run of digits is over it long before the texts above are as long."""
    start = time.process_time()
    assert re.search(r"#### -?(?:[0-9]+,?)+$", "#### " + "9" * 26 + "x") is None
    assert time.process_time() - start > SECONDS


def test_what_is_documented_is_told_apart() -> None:
    assert documented("$1,000.50.") == Fraction(2001, 2)
    assert documented("1.2.3") is None
    assert (marked("#### #### -7."), last_like("5-3"), last_like("- 5")) == ("-7.", "-3", "5")
    assert same(Decimal("18.00"), Fraction(18))
    assert not same(None, Fraction(0))
