"""What became of one question; the verdicts on many are in ``sequential_accuracy`` and ``answers``. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gate = Literal["flexible", "strict"]
"""The reading of an answer that counts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one question: right by each reading, ``#### <number>`` missing, cut off at the token limit; its length.

    passed_over: by how many nats the likeliest token of a step was passed over at most, None where nothing says so; unlikely:
    how many chosen tokens lie beyond a tie with it (:func:`pytest_llminfer.families.accuracy.sampler.passed_over`).
    """

    strict: bool
    flexible: bool
    format_miss: bool = False
    truncated: bool = False
    tokens: int = 0
    passed_over: float | None = None
    unlikely: int = 0
