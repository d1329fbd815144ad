"""Problems in GSM8K's format, and how a model's answer to one is read and graded.

The two ways of reading are those of lm-evaluation-harness (tasks/gsm8k/gsm8k.yaml): ``strict`` takes the number of the first
``#### <number>``; ``flexible`` takes the last thing in the text that looks like a number. Unlike there, numbers are compared
by value: 18, 18.00, $18 and 18. are the same answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from pytest_llminfer.errors import DatasetError

EXTRACTORS = {"strict": "####@1", "flexible": "last-number@1"}
"""Name and version of each way of reading an answer; a change of behaviour is a new version, and baselines record it."""

_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its worked solution.

    Attributes:
        id: Unique within its dataset.
        question: As it is put to the model, without the words of a prompt form.
        answer: The worked solution, whose last line is ``#### <number>``.
    """

    id: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Graded:
    """What an answer is worth.

    Attributes:
        strict: Whether the number after the first ``####`` is right.
        flexible: Whether the last number of the text is right.
        format_miss: Whether ``#### <number>`` is missing.
    """

    strict: bool
    flexible: bool
    format_miss: bool


def extract_strict(text: str) -> Decimal | None:
    """The number after the first ``####`` that has one; None where there is none."""
    found = _STRICT.search(text)
    return _number(found[1]) if found else None


def extract_flexible(text: str) -> Decimal | None:
    """The last number-like piece of ``text``; None where there is none, or where that piece is no number ("...")."""
    last = None
    for last in _FLEXIBLE.finditer(text):  # noqa: B007 - the last match, without holding all of them
        pass
    return _number(last[0]) if last else None


def gold(problem: Problem) -> Decimal:
    """The right answer.

    Raises:
        DatasetError: the solution has no ``#### <number>``.
    """
    value = extract_strict(problem.answer)
    if value is None:
        raise DatasetError(f"the answer of {problem.id} has no line '#### <number>'; add one, or leave the problem out")
    return value


def grade(problem: Problem, text: str) -> Graded:
    """Compare a model's ``text`` with the right answer of ``problem``."""
    right, strict = gold(problem), extract_strict(text)
    return Graded(strict=strict == right, flexible=extract_flexible(text) == right, format_miss=strict is None)


def _number(text: str) -> Decimal | None:
    """The value of a piece such as ``$1,000.``; currency, thousands separators and a final full stop do not count."""
    try:
        return Decimal(text.replace("$", "").replace(",", "").removesuffix("."))
    except InvalidOperation:
        return None
