"""Version 2 of the two readings: numbers as models write them, golds that are refused, and no text that is slow to read."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from pytest_llminfer.datasets.readings import extract_flexible, extract_gold, extract_strict

FLEXIBLE: list[Any] = [
    (r"\boxed{9500}", 9500),
    (r"\boxed{8,000}", 8000),
    (r"\boxed{$9{,}500}", 9500),
    (r"The answer is $9{,}500.", 9500),
    (r"9\,500", 9500),
    ("9 500", 9500),
    ("9\u202f500", 9500),
    ("9\u00a0500", 9500),
    ("9_500", 9500),
    ("9\u2009500", 9500),
    (r"Overtime is \$60." + "\n\n$$\n\\text{ANSWER: } \\$460\n$$", 460),
    (r"$\boxed{460}$.", 460),
    (r"$$\boxed{460}$$", 460),
    ("She pays $29.00", 29),
    (r"\$27.00", 27),
    ("**18**", 18),
    ("18 dollars", 18),
    ("£18", 18),
    ("18%", 18),
    ("18€", 18),
    ("-3", -3),
    ("2 to -3…", -3),
    ("-1,234.5", "-1234.5"),
    ("+5", 5),
    (r"\boxed{+5}", 5),
    (r"\boxed{-7}", -7),
    ("-$3", -3),
    ("$-3", -3),
    ("−3", -3),
    ("–3", -3),
    ("pages 10-12", 12),
    ("x = 5-3", 3),
    ("it is 1/2", None),
    ("12:30", None),
    ("1e3", None),
    ("1.2.3", None),
    ("between 3 and ...", 3),
    (".5", "0.5"),
    ("it is 18.", 18),
    ("1,450,000", 1450000),
    ("12 345 678.5", "12345678.5"),
    ("in 2023 500 people", 500),
    ("a 1 and 20", 20),
    ("", None),
    ("no", None),
    ("first 3, then 18.", 18),
    ("9.500,00", None),
    (r"9\ 500", 9500),
    (r"9{\,}500", 9500),
    ("x2", 2),
    ("$5$", 5),
    ("-", None),
    ("5 - 3", 3),
    ("= - 3", 3),
    ("٣", None),
    ("\u22125", -5),
]
STRICT: list[Any] = [
    (r"#### 9{,}500", 9500),
    (r"#### 9\,500", 9500),
    ("#### 9 500", 9500),
    ("#### $29.00", 29),
    (r"#### \$18", 18),
    ("#### **18**", 18),
    ("#### £18", 18),
    ("#### −3", -3),
    ("#### +5", 5),
    ("#### -$3", -3),
    ("####18", 18),
    ("18", None),
    ("#### ,", None),
    ("#### .", None),
    ("#### 1.2.3", None),
    ("#### 1/2", None),
    ("#### 18\n#### 20", 18),
    ("the #### then #### 7", 7),
    ("#### 18.", 18),
    ("#### 0.5 of it", "0.5"),
    (r"#### \boxed{18}", 18),
    (r"#### $\boxed{18}$", 18),
    ("#### 6\nQuestion: 7", 6),
]


def same(read: Decimal | None, wanted: object) -> bool:
    return read is None if wanted is None else read == Decimal(str(wanted))


@pytest.mark.parametrize(("text", "value"), FLEXIBLE)
def test_flexible_reads_the_last_number(text: str, value: object) -> None:
    assert same(extract_flexible(text), value)


@pytest.mark.parametrize(("text", "value"), STRICT)
def test_strict_reads_the_first_marked_number(text: str, value: object) -> None:
    assert same(extract_strict(text), value)


@pytest.mark.parametrize("gap", ["{,}", "\\,", "{\\,}", "_", " ", "\u00a0", "\u202f", "\u2009", "\\ ", ","])
def test_thousands_may_be_set_off_by_any_of_these(gap: str) -> None:
    for read in (extract_strict, extract_flexible, extract_gold):
        assert read(f"#### 1{gap}234{gap}567.5") == Decimal("1234567.5")
        assert read(f"#### -12{gap}345") == -12345
    # Three digits follow, or it is no separator; one kind alone.
    assert extract_flexible(f"1{gap}2345") != 12345 or gap == ","


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("#### 10 000", 10000),
        ("#### 9{,}500", 9500),
        ("#### 18 dollars", 18),
        ("#### \u22123", -3),
        ("#### 1/2", None),
        ("#### 1e3", None),
        ("#### 12:30", None),
        ("#### 1 1/2", None),
        ("#### 10  000", None),
        ("eighteen", None),
    ],
)
def test_a_gold_line_is_read_whole_or_refused(line: str, value: object) -> None:
    assert same(extract_gold(f"2 + 16 = 18\n{line}\n"), value)


@pytest.mark.parametrize(
    "piece",
    [
        "$",
        ",",
        ".",
        "-",
        "9",
        "$-",
        "-$",
        "9-",
        "#",
        "#### ",
        "####",
        "#### -",
        "9 ",
        "1.2.",
        "999 ",
        "9{,}",
        "{",
        "\\,",
        "1e",
        "**",
        "9:",
    ],
)
@pytest.mark.parametrize("before", ["", "#### "])
def test_long_texts_are_read_in_linear_time(piece: str, before: str) -> None:
    texts = [before + piece * (size // len(piece)) for size in (50_000, 200_000)]
    times = []
    for text in texts:
        start = time.process_time()
        extract_strict(text), extract_flexible(text), extract_gold(text)
        times.append(time.process_time() - start)
    assert times[1] < 16 * max(times[0], 0.005)  # four times the text; sixteen would be quadratic
