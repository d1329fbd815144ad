"""Two execution modes beside the same weights computed without rounding: neither may be farther from that than the other.

R = MSE(candidate - r) / MSE(reference mode - r) over the listed tokens of a position, r what the weights give in a wider dtype. It
needs no floor: depth, dtype and sharpness of the model are in both parts alike (docs/methods.md#served-dtype).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.numerics.near_ties import MOST_NOISE
from pytest_llminfer.numerics.squared_error import SMALLEST
from pytest_llminfer.stats.noise import mean_limits
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVEL = 0.99
"""Of a limit, one-sided."""
FEWEST_PROMPTS = 8
LARGEST_RATIO = {"float32": 16.0, "float16": 1.5, "bfloat16": 1.5}
"""By the dtype that is served. Of 16 bits activations are rounded alike by every kernel, and a benign mode was within 0.86 and
1.23. In float32 the order of the sums is all the rounding there is, which is the kernel's own: the products of one row by a matrix
had half the squared error of those of a batch (0.51 to 1.04 on random models), while a wrong block of the cache gave 3e10."""
GROSS_FACTOR = 100.0
"""How many times the squared error of the reference mode one prompt alone may have: a fault may strike few prompts."""

_LARGEST_LOG = 700.0


def advice_for(dtype: str) -> str:
    """What to do about an execution mode that differs: fp32 first, unless that is what was compared."""
    look = "look at block tables, positions and cache writes"
    if torch_dtype(dtype) == "float32":
        return look
    return f"run the same in fp32 (--dtype=fp32), where a bug stands out from rounding by seven orders of magnitude; then {look}"


@dataclass(frozen=True)
class Errors:
    """Squared errors of two modes against the unrounded weights, at the same positions, in nats squared.

    Attributes:
        candidate: Per prompt (T,), of the mode under test.
        reference: Per prompt (T,), of the reference mode.
        source: How the unrounded predictions were made, as a phrase.
    """

    candidate: Sequence[np.ndarray]
    reference: Sequence[np.ndarray]
    source: str


def check_rounding(*, errors: Errors, dtype: str, claim: str) -> Verdict:
    """Whether an execution mode is no farther from the unrounded weights than the reference mode is.

    errors: of both, of the same prompts in order. dtype: that is served. One ln R a prompt; FAIL if the lower 99 % t limit over
    prompts exceeds the largest R (1.5 in 16 bits), or one prompt has a hundred times the squared error; PASS if the upper limit
    is below, with at least eight prompts. FAIL too where the reference mode itself is farther off than rounding can be, so that a
    fault in both modes does not hide itself.
    """
    lines = problems_of(errors.candidate) + [f"reference mode: {line}" for line in problems_of(errors.reference)]
    if len(errors.candidate) != len(errors.reference):
        lines.insert(0, f"{len(errors.candidate)} prompts, {len(errors.reference)} in the reference mode")
    if lines:
        return not_compared(claim, lines)
    ours, theirs = (np.array([values.mean() for values in side]) for side in (errors.candidate, errors.reference))
    ratios = (ours + SMALLEST) / (theirs + SMALLEST)
    low, high = map(exp, mean_limits([float(value) for value in np.log(ratios)], level=LEVEL))
    largest, most = LARGEST_RATIO[torch_dtype(dtype)], MOST_NOISE[torch_dtype(dtype)]
    gross = np.minimum(ratios, (ours + SMALLEST) / (theirs.mean() + SMALLEST)) > GROSS_FACTOR
    outcome = Outcome.FAIL if low > largest else Outcome.PASS if high < largest else Outcome.INCONCLUSIVE
    if len(ratios) < FEWEST_PROMPTS and outcome is Outcome.PASS:
        outcome = Outcome.INCONCLUSIVE
        lines.append(f"{len(ratios)} prompts; at least {FEWEST_PROMPTS} are needed")
    if gross.any():
        outcome = Outcome.FAIL
        lines.append(f"{int(gross.sum())} of {len(ratios)} prompts have more than {GROSS_FACTOR:g} times the squared error")
    found, ratio = math.sqrt(ours.mean()), float(np.exp(np.log(ratios).mean()))
    reference = math.sqrt(theirs.mean())
    if reference > most:
        outcome = Outcome.FAIL
        lines.append(f"the reference mode itself is {reference:.3g} nats off, which rounding of {torch_dtype(dtype)} is not")
    worst = sorted(range(len(ratios)), key=lambda number: -ratios[number])[:3]
    positions = sum(map(len, errors.candidate))
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"R {ratio:.2f}" if ratio < GROSS_FACTOR else f"R {ratio:.2g}",
        measurements=(
            Measurement(
                "R, squared error over that of the reference mode",
                ratio,
                "",
                len(ratios),
                f"99 % limits {low:.3g} and {high:.3g} over {len(ratios)} prompts",
                limit=largest,
            ),
            Measurement("RMS error", found, "nats", positions, errors.source),
            Measurement("RMS error of the reference mode", reference, "nats", positions, errors.source, limit=most),
        ),
        threshold=f"R <= {largest:g} by its 99 % limits over prompts; no prompt beyond {GROSS_FACTOR:g}",
        threshold_source=f"docs/methods.md#served-dtype, {torch_dtype(dtype)}",
        smallest_detectable=f"R = {largest * ratio / low:.3g}" if low else "nothing: one prompt has no limits",
        advice=advice_for(dtype),
        details=first_offenders(
            [*lines, *(f"prompt {number}: R {ratios[number]:.3g}" for number in worst if outcome is not Outcome.PASS)]
        ),
    )


def exp(value: float) -> float:
    """e^value of a limit, which of a single value is infinite."""
    return math.inf if value > _LARGEST_LOG else math.exp(value)


def problems_of(values: Sequence[np.ndarray]) -> list[str]:
    """Why these figures, per prompt one a position, are no comparison."""
    positions = sum(map(len, values))
    if not positions:
        return ["nothing was compared: no position with log-probabilities on both sides"]
    empty = sum(not len(of_prompt) for of_prompt in values)
    broken = sum(int(np.isnan(of_prompt).sum()) for of_prompt in values)
    return [f"{empty} prompts have no position to compare"] * bool(empty) + [
        f"{broken} of {positions} positions hold no probabilities (NaN, a sum above 1, or none at all)"
    ] * bool(broken)


def not_compared(claim: str, lines: list[str]) -> Verdict:
    """The verdict on a comparison of nothing."""
    return Verdict(
        outcome=Outcome.FAIL,
        claim=claim,
        key="not compared",
        measurements=(),
        threshold="every position of every prompt compared",
        threshold_source="a comparison of nothing is no comparison",
        smallest_detectable="nothing: there is no comparison",
        advice="look at what the engine answered: log-probabilities missing, or no number",
        details=first_offenders(lines),
    )
