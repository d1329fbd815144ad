"""Two execution modes of one engine over the same tokens: decode and prefill, alone and in a batch, cached and computed anew.

They differ by rounding. How much rounding makes is measured in the same engine, between two execution modes that are known to be
benign, and a candidate may be four times as far off (docs/methods.md#served-dtype). A cache of fewer bits is judged from both
sides: one that is no farther off than rounding was not quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.families.divergence.check import KINDS, LIMITS
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.numerics.truncated_kl import truncated_kl
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.stats.bootstrap import RESAMPLES, SEED, limits, resampled_means
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.generation import Generation

NOISE_FACTOR = 4.0
FLOOR = {"float32": 1e-8, "float16": 1e-4, "bfloat16": 5e-4}
"""Nats, by the dtype of the logits: below this nothing is told from rounding (docs/methods.md#served-dtype)."""
FP8_FLOOR = 5e-3
"""Nats. What SGLang's own tests allow a cache of fp8 (docs/methods.md#quantized-caches)."""
MOST_NOISE = {"float32": 1.6e-10, "float16": 1.4e-4, "bfloat16": 7.1e-3}
"""Nats. The most that a benign execution mode made on a network of random weights, which is the noisiest
(docs/methods.md#served-dtype): a fault in both of the execution modes that measure the noise must not widen its own limit."""
GROSS_FACTOR = 100.0
"""How many times the limit one prompt alone may be off. Benign ones were off by 2 times in bfloat16, 4 with a cache of fp8, at the
most (reference model); a fault that strikes few prompts is otherwise lost in draws that leave it out."""
_LARGEST_RATIO = 20.0
_ZERO = 1e-15
_SMALLEST_TAIL = 1e-4
"""Sums of float32 probabilities are off by 1e-7: over a tail of 1e-6 that alone were 5e-9 nats, half of the floor in float32."""


def decoded(answer: Generation) -> Scores:
    """What an answer says of its own tokens, as :class:`Scores`; no positions where it has no log-probabilities."""
    if answer.top_ids is None or answer.top_logprobs is None or not answer.token_ids:
        return Scores(np.zeros(0, np.float32), np.zeros((0, 1), np.int32), np.zeros((0, 1), np.float32))
    chosen = answer.top_ids == np.asarray(answer.token_ids)[:, None]
    logprobs = np.where(chosen.any(axis=1), np.where(chosen, answer.top_logprobs, 0).sum(axis=1), np.nan)
    return Scores(logprobs.astype(np.float32), answer.top_ids, answer.top_logprobs)


def same_context(candidate: Generation, reference: Generation) -> int:
    """At how many positions two answers to one prompt have the same tokens before them: up to and with the first that differs."""
    length = min(len(candidate.token_ids), len(reference.token_ids))
    pairs = zip(candidate.token_ids, reference.token_ids, strict=False)
    return next((position + 1 for position, (ours, theirs) in enumerate(pairs) if ours != theirs), length)


def kl_of_answers(candidate: Sequence[Generation], reference: Sequence[Generation]) -> list[np.ndarray]:
    """Per prompt the KL(reference || candidate) in nats, float64 (T,), at positions with the same context."""
    return [
        _kl(decoded(ours), decoded(theirs), same_context(ours, theirs)) for ours, theirs in zip(candidate, reference, strict=True)
    ]


def kl_of_scores(candidate: Sequence[Scores], reference: Sequence[Scores]) -> list[np.ndarray]:
    """Per prompt the KL(reference || candidate) in nats, float64 (T,), of what two execution modes made of the same given
    tokens.
    """
    return [_kl(ours, theirs, len(theirs.logprobs)) for ours, theirs in zip(candidate, reference, strict=True)]


def k3(candidate: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Per prompt e^r - 1 - r, float64 (T,), with r the difference of the log-probabilities (T,) of the given tokens.

    An estimate of the KL that is never negative, where no more is known than these (Schulman, "Approximating KL divergence").
    """
    ratios = [
        np.minimum(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64), _LARGEST_RATIO)
        for ours, theirs in zip(candidate, reference, strict=True)
    ]
    return [np.maximum(np.expm1(ratio) - ratio, 0.0) for ratio in ratios]


def _kl(ours: Scores, theirs: Scores, length: int) -> np.ndarray:
    cut = [Scores(side.logprobs[:length], side.top_ids[:length], side.top_logprobs[:length]) for side in (ours, theirs)]
    if not all(len(side.logprobs) == length for side in cut):
        return np.full(length, np.nan)
    found = truncated_kl(cut[1], cut[0], smallest_tail=_SMALLEST_TAIL)
    # Equal lists leave 1e-20 of arithmetic, which would count as a cache that was quantized.
    return np.where(found < _ZERO, 0.0, found)


def largest_difference(dtype: str, kv_dtype: str = "") -> tuple[float, str]:
    """The floor of the limit, in nats, and where it comes from. kv_dtype: of a cache that is compared with an unquantized one."""
    if kv_dtype == "fp8":
        return FP8_FLOOR, "docs/methods.md#quantized-caches, a KV cache of fp8"
    if kv_dtype:
        kind = KINDS[kv_dtype]
        return LIMITS[kind].kl, f"docs/methods.md#kl-limits, {kind}"
    return FLOOR[torch_dtype(dtype)], f"docs/methods.md#served-dtype, logits of {torch_dtype(dtype)}"


def check_execution_modes(
    *, candidate: Sequence[np.ndarray], noise: Sequence[np.ndarray], dtype: str, claim: str, kv_dtype: str = "", unit: str = "KL"
) -> Verdict:
    """Whether two execution modes differ by no more than rounding.

    candidate, noise: per prompt the divergence in nats at each position, (T,), of the execution mode under test and of two benign
    ones of the same engine in the same session; the prompts of the two need not be the same. dtype: of the logits. The mean over
    prompts is judged against max(4 x mean noise, floor) by 99 % limits of a bootstrap over prompts: FAIL where it is above beyond
    doubt or one prompt is grossly off, PASS where it is below. kv_dtype: of a quantized cache under test, whose difference must
    exceed the noise too. unit: what the divergence is called, KL or k3.
    """
    lines = _problems(candidate) + [f"noise: {line}" for line in _problems(noise)]
    if lines:
        return _nothing(claim, lines)
    floor, source = largest_difference(dtype, kv_dtype)
    most = MOST_NOISE[torch_dtype(dtype)]
    means, rounding = _means(candidate), _means(noise)
    found, n0 = float(means.mean()), min(float(rounding.mean()), most)
    drawn = resampled_means(means)[0]
    drawn_noise = np.minimum(resampled_means(rounding, seed=SEED + 1)[0], most)
    low, high = limits(drawn)
    bound = max(NOISE_FACTOR * n0, floor)
    beyond = limits(drawn - np.maximum(NOISE_FACTOR * drawn_noise, floor))
    outcome = Outcome.FAIL if beyond[0] > 0 else Outcome.PASS if beyond[1] <= 0 else Outcome.INCONCLUSIVE
    if gross := int((means > GROSS_FACTOR * bound).sum()):
        outcome = Outcome.FAIL
        lines.append(f"{gross} of {len(means)} prompts are off by more than {GROSS_FACTOR:g} times the limit of the mean")
    slope, slopes = _slope(candidate)
    if kv_dtype and outcome is not Outcome.FAIL:
        least = limits(drawn - drawn_noise)
        if found == 0.0 or least[1] <= 0:
            outcome = Outcome.FAIL
            lines.append(f"no farther off than rounding: the cache was not quantized to {kv_dtype}, whatever it was declared as")
        elif least[0] <= 0:
            outcome = Outcome.INCONCLUSIVE
            lines.append(f"not farther off than rounding beyond doubt, as a cache of {kv_dtype} must be")
    if rounding.mean() > n0:
        lines.append(f"the two benign execution modes differ by {rounding.mean():.3g} nats, of which {most:.3g} are taken as noise")
    if slopes[0] > 0 and outcome is not Outcome.PASS:
        lines.append("the difference grows with the position, as that of wrong positions or blocks does, and noise does not")
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
                f"99 % limits {low:.3g} and {high:.3g} over {len(means)} prompts, {RESAMPLES:,} resamples",
            ),
            Measurement("noise of benign execution modes", n0, "nats", sum(map(len, noise)), f"over {len(rounding)} prompts"),
            Measurement("largest difference", max(float(values.max()) for values in candidate if len(values)), "nats"),
            Measurement("slope", slope, "nats per 100 positions", len(means), f"99 % limits {slopes[0]:.2g} and {slopes[1]:.2g}"),
        ),
        threshold=f"mean {unit} <= {bound:.3g} nats{', and above the noise' if kv_dtype else ''}, by its 99 % limits; no prompt "
        f"beyond {GROSS_FACTOR * bound:.3g}",
        threshold_source=f"the larger of {NOISE_FACTOR:g} times the noise and {floor:g} nats ({source})",
        smallest_detectable=f"a mean {unit} of {bound + found - low:.3g} nats",
        advice="run the same in fp32 (--dtype=fp32), where a bug stands out from rounding by seven orders of magnitude; "
        "then look at block tables, positions and cache writes",
        details=first_offenders(
            [*lines, *(f"prompt {number}: {unit} {means[number]:.3g} nats" for number in shown if outcome is not Outcome.PASS)]
        ),
    )


def _problems(divergences: Sequence[np.ndarray]) -> list[str]:
    positions = sum(map(len, divergences))
    if not positions:
        return ["nothing was compared: no position with log-probabilities on both sides"]
    empty = sum(not len(values) for values in divergences)
    broken = sum(int(np.isnan(values).sum()) for values in divergences)
    return [f"{empty} prompts have no position to compare"] * bool(empty) + [
        f"{broken} of {positions} positions hold no probabilities (NaN, a sum above 1, or none at all)"
    ] * bool(broken)


def _nothing(claim: str, lines: list[str]) -> Verdict:
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


def _means(divergences: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values.mean() for values in divergences])


def _slope(divergences: Sequence[np.ndarray]) -> tuple[float, tuple[float, float]]:
    """The least-squares slope over all positions, in nats per 100 of them, and its 99 % limits, prompts drawn."""
    middle, mean = np.concatenate([np.arange(len(values)) for values in divergences]).mean(), np.concatenate(divergences).mean()
    offsets = [np.arange(len(values)) - middle for values in divergences]
    products = np.array([(offset * (values - mean)).sum() for offset, values in zip(offsets, divergences, strict=True)])
    squares = np.array([(offset**2).sum() for offset in offsets])
    if not squares.sum():
        return 0.0, (0.0, 0.0)
    drawn, drawn_squares = resampled_means(products, squares)
    ratios = 100 * drawn / np.maximum(drawn_squares, np.finfo(np.float64).tiny)
    return float(100 * products.sum() / squares.sum()), limits(ratios)
