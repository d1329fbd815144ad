"""What became of one question; the verdicts on many are in ``sequential_accuracy`` and ``answers``. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gate = Literal["flexible", "strict"]
"""The reading of an answer that counts."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one question: right by each reading, ``#### <number>`` missing, cut off at the token limit; its length.

    off_argmax: by how many nats the chosen token of a step fell short of the likeliest at most, None where nothing says so;
    unlikely: how many chosen tokens lie beyond a tie with it (:func:`pytest_llminfer.families.accuracy.sampler.off_argmax`).
    """

    strict: bool
    flexible: bool
    format_miss: bool = False
    truncated: bool = False
    tokens: int = 0
    off_argmax: float | None = None
    unlikely: int = 0
