"""What became of one question; the verdicts on many are in ``check`` and ``answers``. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gate = Literal["flexible", "strict"]
"""The reading of an answer that counts."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an engine answered to one question, before it is graded.

    Attributes:
        text: The answer, up to the first stop string.
        truncated: Whether it was cut off at the token limit.
        tokens: Generated tokens.
        off_argmax: Largest distance in nats of a chosen token's log-probability from the likeliest of its step; None where the
            engine gives no log-probabilities.
        unlikely: How many chosen tokens lie beyond a tie with the likeliest.
    """

    text: str
    truncated: bool
    tokens: int
    off_argmax: float | None
    unlikely: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one question.

    Attributes:
        strict: Whether the answer is right by the strict reading.
        flexible: Whether it is right by the flexible reading.
        format_miss: Whether ``#### <number>`` is missing.
        truncated: Whether it was cut off at the token limit.
        tokens: Generated tokens.
        off_argmax: Largest distance in nats of a chosen token's log-probability from the likeliest of its step; None where the
            engine gives no log-probabilities (:func:`pytest_llminfer.families.accuracy.sampler.off_argmax`).
        unlikely: How many chosen tokens lie beyond a tie with the likeliest.
    """

    strict: bool
    flexible: bool
    format_miss: bool = False
    truncated: bool = False
    tokens: int = 0
    off_argmax: float | None = None
    unlikely: int = 0
