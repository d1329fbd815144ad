"""Two execution modes of one engine over the same tokens: decode and prefill, alone and in a batch, cached and computed anew.

They differ by rounding. Where the same weights can be computed without it, both modes are compared with that (``rounding.py``);
elsewhere how much rounding makes is measured in the same engine and the same unit, between two modes that are known to be benign
(docs/methods.md#served-dtype). A cache of fewer bits is judged from both sides: one that is no farther off than rounding was not
quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.families.divergence.check import KINDS, LIMITS
from pytest_llminfer.families.execution_modes.rounding import LEVEL, advice_for, check_rounding, exp, not_compared, problems_of
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.numerics.near_ties import MOST_NOISE as MOST_LOGIT_NOISE
from pytest_llminfer.stats.noise import difference_limits, mean_limits
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.families.execution_modes.rounding import Errors

NOISE_FACTOR = 4.0
FLOOR = {"float32": 1e-8, "float16": 1e-4, "bfloat16": 5e-4}
"""Nats of KL, by the dtype of the logits: up to this, a difference beyond four times the noise may be rounding that the noise did
not show, and is INCONCLUSIVE."""
FP8_LIMIT = 5e-3
"""Nats. What SGLang's own tests allow a cache of fp8 (docs/methods.md#quantized-caches)."""
MOST_NOISE = {"float32": 1.6e-10, "float16": 1.4e-4, "bfloat16": 7.1e-3}
"""Nats of KL. The most that a benign execution mode made on a network of random weights, which is the noisiest
(docs/methods.md#served-dtype): a fault in both of the execution modes that measure the noise must not widen its own limit."""
GROSS_FACTOR = 100.0
"""How many times the limit one prompt alone may be off, or the floor of the dtype where that is larger. Benign ones were off by 2
times in bfloat16, 4 with a cache of fp8, at the most (reference model); a fault that strikes few prompts is otherwise lost."""
_OFFSET = 0.1
"""Of the noise, added to every value before its logarithm: what is far below the noise is not told from 0."""
_NO_NOISE = 1e-13
"""Nats. Less is what float32 makes of equal log-probabilities."""


@dataclass(frozen=True)
class Comparison:
    """What two execution modes made of the same tokens.

    Attributes:
        divergence: Per prompt (T,), divergence in nats at each position, in ``unit``.
        noise: The same between two benign modes, whose prompts may be others; empty where ``errors`` are known.
        dtype: Of the logits, in the words of a cell.
        errors: Squared errors of both modes against the same weights without rounding; None where those cannot be had.
        missing: Why there are no errors; empty where there are.
        kv_dtype: Of a quantized cache that only the candidate mode has; empty for none.
        unit: ``KL`` or ``k3``.
    """

    divergence: Sequence[np.ndarray]
    noise: Sequence[np.ndarray]
    dtype: str
    errors: Errors | None = None
    missing: str = ""
    kv_dtype: str = ""
    unit: str = "KL"

    def judged(self, claim: str) -> Verdict:
        """By the squared errors where they are known, otherwise by the noise."""
        if self.errors is not None and not self.kv_dtype:
            return check_rounding(errors=self.errors, dtype=self.dtype, claim=claim)
        return check_execution_modes(
            candidate=self.divergence,
            noise=self.noise,
            dtype=self.dtype,
            claim=claim,
            kv_dtype=self.kv_dtype,
            unit=self.unit,
            missing=self.missing,
        )


def check_execution_modes(
    *,
    candidate: Sequence[np.ndarray],
    noise: Sequence[np.ndarray],
    dtype: str,
    claim: str,
    kv_dtype: str = "",
    unit: str = "KL",
    missing: str = "",
) -> Verdict:
    """Whether two execution modes differ by no more than two benign ones do.

    candidate, noise: per prompt the divergence in nats at each position, (T,), both in ``unit``, KL or k3, of the execution mode
    under test and of two benign ones of the same engine in the same session; the prompts of the two need not be the same. dtype: of
    the logits. Logarithms of the prompts' means are compared by t limits (99 %, one-sided): FAIL beyond four times the noise, which
    is twice the error, PASS within. Noise of zero to the bit says nothing of rounding: INCONCLUSIVE unless the candidate is equal
    too, and so is a KL within the floor of the dtype. kv_dtype: of a quantized cache under test, whose limit is that of its format,
    and whose difference must exceed the noise. missing: why no unrounded reference was there to compare with.
    """
    lines = problems_of(candidate) + [f"noise: {line}" for line in problems_of(noise)]
    if lines:
        return not_compared(claim, lines)
    means, rounding = _means(candidate), _means(noise)
    most = _most_noise(dtype, unit)
    n0 = min(float(rounding.mean()), most)
    judged = _quantized(means, rounding, n0, kv_dtype) if kv_dtype else _unquantized(means, rounding, n0, most, dtype, unit)
    outcome, bound, limits = judged.outcome, judged.bound, judged.limits
    lines += judged.lines
    if gross := int((means > judged.gross).sum()):
        outcome = Outcome.FAIL
        lines.append(f"{gross} of {len(means)} prompts are off by more than {judged.gross:.3g} nats")
    elif odd := int((means > GROSS_FACTOR * max(bound, _NO_NOISE)).sum()):
        outcome = Outcome.INCONCLUSIVE if outcome is Outcome.PASS else outcome
        lines.append(
            f"{odd} of {len(means)} prompts are off by more than {GROSS_FACTOR:g} times the limit, which rounding may make"
        )
    slope, slopes = _slope(candidate)
    if rounding.mean() > n0:
        lines.append(f"the two benign execution modes differ by {rounding.mean():.3g} nats, of which {most:.3g} are taken as noise")
    if slopes[0] > 0 and outcome is not Outcome.PASS:
        lines.append("the difference grows with the position, as that of wrong positions or blocks does, and noise does not")
    if missing and not kv_dtype:
        lines.append(f"compared with the noise of the engine, not with fp32: {missing}")
    found = float(means.mean())
    shown = sorted(range(len(means)), key=lambda number: -means[number])[:3]
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"{unit} {found:.2g}, noise {n0:.2g}",
        measurements=(
            Measurement(
                f"mean {unit}",
                found,
                "nats",
                sum(map(len, candidate)),
                f"{len(means)} prompts; {judged.scale} between {limits[0]:.3g} and {limits[1]:.3g} by 99 % limits",
            ),
            Measurement("noise of benign execution modes", n0, "nats", sum(map(len, noise)), f"over {len(rounding)} prompts"),
            Measurement("largest difference", max(float(values.max()) for values in candidate if len(values)), "nats"),
            Measurement("slope", slope, "nats per 100 positions", len(means), f"99 % limits {slopes[0]:.2g} and {slopes[1]:.2g}"),
        ),
        threshold=f"{unit} <= {bound:.3g} nats{', and above the noise' if kv_dtype else ''}, by 99 % limits of its logarithm over "
        f"prompts; no prompt beyond {judged.gross:.3g}",
        threshold_source=judged.source,
        smallest_detectable=f"a {unit} of {bound * max(1.0, judged.widening):.3g} nats",
        advice=advice_for(dtype),
        details=first_offenders(
            [*lines, *(f"prompt {number}: {unit} {means[number]:.3g} nats" for number in shown if outcome is not Outcome.PASS)]
        ),
    )


@dataclass(frozen=True)
class _Judged:
    """The outcome of a comparison with the noise.

    Attributes:
        outcome: PASS, FAIL or INCONCLUSIVE.
        bound: Largest divergence that passes, in nats.
        gross: Largest divergence of one prompt that is not a failure by itself, in nats.
        limits: Lower and upper 99 % limit of ``scale``.
        scale: What the limits are of, as a phrase.
        source: Where the bound comes from, as a phrase.
        widening: Factor by which a divergence must exceed the bound to be distinguished from it.
        lines: Details for the verdict; empty for none.
    """

    outcome: Outcome
    bound: float
    gross: float
    limits: tuple[float, float]
    scale: str
    source: str
    widening: float
    lines: list[str]


def _unquantized(means: np.ndarray, rounding: np.ndarray, n0: float, most: float, dtype: str, unit: str) -> _Judged:
    """Four times the noise, on the log scale."""
    floor = FLOOR[torch_dtype(dtype)] if unit == "KL" else 0.0
    lines: list[str] = []
    silent = float(rounding.max()) <= _NO_NOISE
    # Without any noise the only limit is what rounding can make at all.
    base = most if silent else n0
    capped = np.minimum(rounding, most) if not silent else np.full(len(rounding), most)
    low, high = map(exp, difference_limits(_logs(means, base), _logs(capped, base), level=LEVEL))
    bound = NOISE_FACTOR * base
    if torch_dtype(dtype) == "float32" and float(means.mean()) <= FLOOR["float32"]:
        # A fault is seven orders of magnitude away (docs/methods.md#fp32-structure), whatever the noise.
        outcome, bound = Outcome.PASS, max(bound, FLOOR["float32"])
    elif low > NOISE_FACTOR:
        outcome = Outcome.FAIL if means.mean() > floor else Outcome.INCONCLUSIVE
        if outcome is Outcome.INCONCLUSIVE:
            lines.append(f"beyond the noise, but within {floor:g} nats, which rounding may make in {torch_dtype(dtype)}")
    elif silent and means.max() > _NO_NOISE:
        outcome = Outcome.INCONCLUSIVE
        lines.append("two benign execution modes are equal to the bit, so that nothing tells how much rounding may make")
    else:
        outcome = Outcome.PASS if high <= NOISE_FACTOR else Outcome.INCONCLUSIVE
    what = "what benign execution modes make on random weights" if silent else "the noise"
    # One row may be multiplied by another kernel than a batch, whose rounding no pair of batches shows: the floor counts here too.
    gross = GROSS_FACTOR * max(bound, floor, _NO_NOISE)
    source = f"{NOISE_FACTOR:g} times {what}, {base:.3g} nats"
    return _Judged(outcome, bound, gross, (low, high), f"ratio to {what}", source, high / low, lines)


def _quantized(means: np.ndarray, rounding: np.ndarray, n0: float, kv_dtype: str) -> _Judged:
    """The limit of the format above, the noise below."""
    bound, source = largest_difference(kv_dtype)
    low, high = map(exp, mean_limits(_logs(means, bound / 100), level=LEVEL))
    outcome = Outcome.FAIL if low > bound else Outcome.PASS if max(high, float(means.mean())) <= bound else Outcome.INCONCLUSIVE
    lines: list[str] = []
    if outcome is not Outcome.FAIL:
        base = n0 or bound / 1e6
        least, most = difference_limits(_logs(means, base), _logs(rounding, base), level=LEVEL)
        if means.max() == 0.0 or most <= 0:
            outcome = Outcome.FAIL
            lines.append(f"no farther off than rounding: the cache was not quantized to {kv_dtype}, whatever it was declared as")
        elif least <= 0:
            outcome = Outcome.INCONCLUSIVE
            lines.append(f"not farther off than rounding beyond doubt, as a cache of {kv_dtype} must be")
    return _Judged(outcome, bound, GROSS_FACTOR * bound, (low, high), "geometric mean", source, high / low, lines)


def largest_difference(kv_dtype: str) -> tuple[float, str]:
    """What a cache of this format may change, in nats of KL, and where that comes from."""
    if kv_dtype == "fp8":
        return FP8_LIMIT, "docs/methods.md#quantized-caches, a KV cache of fp8"
    kind = KINDS[kv_dtype]
    return LIMITS[kind].kl, f"docs/methods.md#kl-limits, {kind}"


def _most_noise(dtype: str, unit: str) -> float:
    name = torch_dtype(dtype)
    return MOST_NOISE[name] if unit == "KL" else MOST_LOGIT_NOISE[name] ** 2 / 2


def _logs(values: np.ndarray, scale: float) -> list[float]:
    return [float(value) for value in np.log(values + _OFFSET * scale)]


def _means(divergences: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values.mean() for values in divergences])


def _slope(divergences: Sequence[np.ndarray]) -> tuple[float, tuple[float, float]]:
    """The mean over prompts of the least-squares slope, in nats per 100 positions, and its 99 % limits."""
    slopes = []
    for values in divergences:
        if len(values) > 1:
            offset = np.arange(len(values)) - (len(values) - 1) / 2
            slopes.append(100 * float((offset * values).sum() / (offset**2).sum()))
    return (float(np.mean(slopes)), mean_limits(slopes, level=LEVEL)) if slopes else (0.0, (0.0, 0.0))
