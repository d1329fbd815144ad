"""What a baseline holds of K runs over the same questions, question by question."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from pytest_llminfer.stats import exchangeable, sequential

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.families.accuracy.grading import Answer, Gate

_SHOWN_IDS = 10
_HIDDEN = 0.02


@dataclass(frozen=True, slots=True)
class Recorded:
    """K runs over the same questions.

    Attributes:
        runs: K, at least 1.
        flexible: Question id to how many of the K runs are right by the flexible reading.
        strict: Question id to how many are right by the strict reading.
        format_misses: Question id to how many lack ``#### <number>``.
        truncated: Question id to how many were cut off at the token limit.
        mean_tokens: Mean length of an answer over all runs and questions; None where it is not known.
        self_discordance: Share of questions whose flexible outcome differs between two runs; None with one run.
        order: Question ids in the order in which they are asked.
    """

    runs: int
    flexible: Mapping[str, int]
    strict: Mapping[str, int]
    format_misses: Mapping[str, int]
    truncated: Mapping[str, int]
    mean_tokens: float | None
    self_discordance: float | None
    order: tuple[str, ...]

    def right(self, gate: Gate) -> Mapping[str, int]:
        """Right answers by question id, in all runs together."""
        return self.strict if gate == "strict" else self.flexible

    def discordance(self, gate: Gate) -> float | None:
        """The self-discordance of this reading; None with one run."""
        if gate == "flexible" or self.runs == 1:
            return self.self_discordance
        return exchangeable.self_discordance(list(self.strict.values()), self.runs)

    @property
    def gate(self) -> Gate:
        """The reading that counts: flexible, unless it finds fewer right answers than strict by more than 2 points.

        So it is of a model that goes on after its ``#### <number>``: by the last number, right answers would count as wrong, and
        their loss would not show.
        """
        hidden = sum(self.strict.values()) - sum(self.flexible.values())
        return "strict" if hidden > _HIDDEN * self.runs * len(self.flexible) else "flexible"

    def shuffled(self, seed: int) -> Recorded:
        """The same runs, to be asked in an order drawn anew by ``seed``, the same on every machine."""
        return replace(self, order=sequential.shuffled(self.order, seed))


def recorded_runs(runs: Sequence[Mapping[str, Answer]], seed: int) -> Recorded:
    """What K runs over the same questions leave in a record; ``seed``: of the order in which they are asked again.

    Raises:
        ValueError: no runs, or runs over different questions.
    """
    if not runs or not runs[0]:
        raise ValueError("a record needs a run and a question")
    ids = list(runs[0])
    if any(run.keys() != runs[0].keys() for run in runs):
        raise ValueError("the runs of one record must be over the same questions")

    def count(name: str) -> dict[str, int]:
        return {question: sum(getattr(run[question], name) for run in runs) for question in ids}

    flexible = count("flexible")
    right = list(flexible.values())
    lengths = [getattr(answer, "tokens", 0) for run in runs for answer in run.values()]
    return Recorded(
        runs=len(runs),
        flexible=flexible,
        strict=count("strict"),
        format_misses=count("format_miss"),
        truncated=count("truncated"),
        mean_tokens=fmean(lengths) or None,
        self_discordance=exchangeable.self_discordance(right, len(runs)) if len(runs) > 1 else None,
        order=sequential.shuffled(ids, seed),
    )


def first_ids(ids: Sequence[str]) -> str:
    """The first ids, and how many more there are."""
    rest = len(ids) - _SHOWN_IDS
    return ", ".join(ids[:_SHOWN_IDS]) + (f" and {rest:,} more" if rest > 0 else "")


def points(share: float, *, up: bool = False) -> str:
    """A share as percentage points; ``up``: rounded up to a hundredth, for a bound that must hold as printed."""
    return f"{math.ceil(1e4 * share - 1e-9) / 100:g} points" if up else f"{100 * share:.3g} points"
