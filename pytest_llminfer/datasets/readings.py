r"""Version 2 of the two readings of an answer: numbers as people and models write them, beyond what lm-evaluation-harness reads.

Over version 1 (:mod:`pytest_llminfer.datasets.gsm8k`): thousands may be set off by ``{,}``, ``\,``, ``_``, a space, or a thin or
no-break one, as well as by commas; a minus may be any of Unicode's, and is one only where no digit, letter or bracket stands before
it, so that ``10-12`` ends in 12; ``$$`` and other marks without a digit are no number; ``#### $18``, ``#### **18**`` and
``#### \boxed{18}`` are marked answers; and a number that goes on as something else (``1/2``, ``12:30``, ``1e3``, ``1.2.3``) is
none. A space between digits joins them where exactly three follow: ``3 500`` is read as 3500.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_MINUS = "-\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"
_CURRENCY = r"(?:\\?\$|[£€¥₹])"
_NUMBER = rf"""
    (?P<sign>(?<![0-9A-Za-z)\]}}])[{_MINUS}+])?
    {_CURRENCY}?
    (?P<inner>(?<=[$£€¥₹])[{_MINUS}])?
    (?P<whole>
        [1-9][0-9]{{0,2}}(?P<gap>\{{,\}}|\{{?\\,\}}?|\\\x20|[_\x20\u00a0\u2009\u202f])[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*(?![0-9])
        |[0-9][0-9,]*
        |(?=\.[0-9])
    )
    (?P<part>\.[0-9]+)?
    (?P<more>(?:[.,/:^][0-9]|[eE][+-]?[0-9])[0-9.,/:^]*)?
"""
_FLEXIBLE = re.compile(_NUMBER, re.VERBOSE)
_STRICT = re.compile(r"\#\#\#\#(?:[\x20\t]|\*\*|\\?\$|\\boxed\{|\\\(|\\\[|\\text\{){0,8}" + _NUMBER, re.VERBOSE)
_DIGIT = re.compile("[0-9]")


def extract_strict(text: str) -> Decimal | None:
    """The number after the first ``####`` that has one; None where there is none, or where it goes on as something else."""
    found = _STRICT.search(text)
    return _value(found) if found else None


def extract_flexible(text: str) -> Decimal | None:
    """The last number of ``text``; None where there is none, or where it goes on as something else."""
    last = None
    for last in _FLEXIBLE.finditer(text):  # noqa: B007 - the last match, without holding all of them
        pass
    return _value(last) if last else None


def extract_gold(text: str) -> Decimal | None:
    """The number of a solution's ``####`` line; None where there is none, or where more digits follow it in that line."""
    found = _STRICT.search(text)
    if found is None or _DIGIT.search(text[found.end() :].partition("\n")[0]):
        return None
    return _value(found)


def _value(found: re.Match[str]) -> Decimal | None:
    if found["more"]:
        return None
    whole = found["whole"].replace(found["gap"], "") if found["gap"] else found["whole"].replace(",", "")
    sign = found["sign"] or found["inner"] or ""
    try:
        number = Decimal(whole + (found["part"] or ""))
    except InvalidOperation:
        return None
    return -number if sign and sign != "+" else number
