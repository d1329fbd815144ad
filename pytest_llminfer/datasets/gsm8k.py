"""Problems in GSM8K's format, and how a model's answer to one is read and graded.

There are two readings: ``strict`` takes the number of the first ``#### <number>``; ``flexible`` takes the last number of the text.
Numbers are compared by value: 18, 18.00 and 18. are the same answer. Version 1 of both finds what lm-evaluation-harness
(tasks/gsm8k/gsm8k.yaml) finds, and stays as it is; version 2 (``readings``) is that of new records. A record is judged by the
versions that it was made with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from pytest_llminfer.datasets import readings
from pytest_llminfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        read_strict: The number that the strict reading found; None without one.
        read_flexible: The number that the flexible reading found; None without one.
    """

    strict: bool
    flexible: bool
    format_miss: bool
    read_strict: Decimal | None = field(default=None, compare=False)
    read_flexible: Decimal | None = field(default=None, compare=False)


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


STRICT: dict[str, Callable[[str], Decimal | None]] = {"####@1": extract_strict, "####@2": readings.extract_strict}
FLEXIBLE: dict[str, Callable[[str], Decimal | None]] = {
    "last-number@1": extract_flexible,
    "last-number@2": readings.extract_flexible,
}
"""By name and version; a change of behaviour is a new version, and baselines record it."""

EXTRACTORS = {"strict": "####@2", "flexible": "last-number@2"}
"""Those of new records."""

_GOLD = {"####@1": extract_strict, "####@2": readings.extract_gold}


def knows(extractors: Mapping[str, str]) -> bool:
    """Whether answers can be read by these versions."""
    return extractors.get("strict") in STRICT and extractors.get("flexible") in FLEXIBLE


def gold(problem: Problem, extractors: Mapping[str, str] = EXTRACTORS) -> Decimal:
    """The right answer.

    Raises:
        DatasetError: the solution has no ``#### <number>``.
    """
    value = _GOLD[extractors["strict"]](problem.answer)
    if value is None:
        raise DatasetError(
            f"the answer of {problem.id} has no line '#### <number>', or one that goes on as something else; "
            "write a whole or decimal number there, or leave the problem out"
        )
    return value


def grade(problem: Problem, text: str, extractors: Mapping[str, str] = EXTRACTORS) -> Graded:
    """Compare a model's ``text`` with the right answer of ``problem``, by these versions of the readings."""
    right, strict = gold(problem, extractors), STRICT[extractors["strict"]](text)
    flexible = FLEXIBLE[extractors["flexible"]](text)
    return Graded(strict == right, flexible == right, strict is None, read_strict=strict, read_flexible=flexible)


def _number(text: str) -> Decimal | None:
    """The value of a piece such as ``$1,000.``; currency, thousands separators and a final full stop do not count."""
    try:
        return Decimal(text.replace("$", "").replace(",", "").removesuffix("."))
    except InvalidOperation:
        return None
