"""Settings of the accuracy gate's simulation, and one simulated run: a new record, a new run, an order drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from simulated_questions import N, Noise, Questions

from pytest_llminfer.stats import betting, exchangeable
from pytest_llminfer.stats.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llminfer.stats.exchangeable import Tally

SUPPORTED = 0.0
"""Stands for the margin that the record supports."""


@dataclass(frozen=True, slots=True)
class Setting:
    """K recorded runs, noise, a true drop and a margin (shares). alone: FAIL by the test of exchangeability alone, as a comparison.

    tolerated: whether the margin is what a drop is tolerated up to, as of a quantized cell beside unquantized weights.
    """

    runs: int
    noise: Noise
    drop: float = 0.0
    margin: float = 0.02
    questions: int = N
    tolerated: bool = False
    alone: bool = False

    def __str__(self) -> str:
        noise = f"K={self.runs} d={100 * self.noise.recorded:g}"
        if self.noise.rerolled or self.noise.redrawn:
            noise += f" rerolled={100 * self.noise.rerolled:g}{' redrawn' * self.noise.redrawn}"
        margin = f"m={100 * self.margin:g}" if self.margin else "m=supported"
        words = f"{noise} drop={100 * self.drop:g} {margin} n={self.questions}"
        return words + " tolerated" * self.tolerated + " exchangeability alone" * self.alone


class ByExchangeabilityAlone(Decision):
    """The gate without the test of sign flips."""

    def _p_value(self, counts: Tally) -> float:
        return exchangeable.p_value(counts)


def judge(setting: Setting, rng: np.random.Generator) -> tuple[str, int]:
    """One record and one run: "fail", "pass" or "undecided", and the questions that it took."""
    questions = Questions(rng, setting.noise, setting.drop, setting.questions)
    before, now = questions.recorded(setting.runs), questions.new()
    margin = setting.margin
    if margin == SUPPORTED:
        measured = exchangeable.self_discordance(before.tolist(), setting.runs)
        margin = max(0.02, betting.smallest_margin(setting.questions, setting.runs, measured))
    kind = ByExchangeabilityAlone if setting.alone else Decision
    decision = kind(setting.questions, margin=margin, tolerated=margin if setting.tolerated else 0.0)
    # The number of recorded right answers, and K + 1 more where the new run is right.
    codes = rng.permutation(before + (setting.runs + 1) * now)
    counts, asked = np.zeros(2 * (setting.runs + 1), dtype=int), 0
    for upto in decision.looks:
        counts += np.bincount(codes[asked:upto], minlength=len(counts))
        asked = upto
        split = counts.tolist()
        outcome = decision.judge(exchangeable.from_counts(split[: setting.runs + 1], split[setting.runs + 1 :]))
        if outcome:
            return outcome, asked
    raise AssertionError("the last look decides")


QUIET, PLANNED, LOUD, ACROSS = Noise(0.003), Noise(0.03), Noise(0.06), Noise(0.10)
COPIES = Noise(0.0)
REROLLED = (
    Noise(0.0, 0.01),
    Noise(0.0, 0.03),
    Noise(0.0, 0.06),
    Noise(0.011, 0.02),
    Noise(0.011, 0.05, redrawn=True),
    Noise(0.03, 0.03, redrawn=True),
    Noise(0.03, 0.055, redrawn=True),
)
"""Copies and noisy records beside a new run that differs in 1 to 10 % of outcomes."""


def settings() -> dict[str, list[Setting]]:
    """What is simulated, by the name of its table."""
    return {
        "nothing changed, and drops": list(_power()),
        "near ties decided anew, nothing lost": list(_rerolled()),
        "a true drop equal to the margin": list(_at_the_margin()),
        "the margin that the record supports, nothing lost": list(_supported()),
        "a format beside unquantized weights": list(_formats()),
    }


def _power() -> Iterator[Setting]:
    for runs, noise, margin in (
        (4, Noise(0.01), 0.03),
        (1, PLANNED, 0.03),
        (4, PLANNED, 0.03),
        (1, PLANNED, 0.02),
        (4, PLANNED, 0.02),
        (4, LOUD, 0.03),
        (4, ACROSS, 0.03),
    ):
        yield from (Setting(runs, noise, drop, margin) for drop in (0.0, 0.02, 0.03, 0.05))


def _rerolled() -> Iterator[Setting]:
    for noise in REROLLED:
        yield from (Setting(4, noise, 0.0, 0.03, alone=alone) for alone in (False, True))


def _at_the_margin() -> Iterator[Setting]:
    for noise in (COPIES, Noise(0.01), PLANNED, ACROSS, *REROLLED):
        yield Setting(4, noise, 0.03, 0.03)
    yield Setting(1, PLANNED, 0.03, 0.03)
    yield Setting(4, PLANNED, 0.02, 0.02)


def _supported() -> Iterator[Setting]:
    for questions in (300, 1000):
        for noise in (COPIES, QUIET, Noise(0.01), PLANNED):
            yield Setting(4, noise, 0.0, SUPPORTED, questions)


def _formats() -> Iterator[Setting]:
    for drop in (0.025, 0.06, 0.09):
        yield Setting(4, Noise(0.0, 0.032), drop, 0.06, 1000, tolerated=True)
