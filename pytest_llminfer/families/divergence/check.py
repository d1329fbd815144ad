"""Next-token distributions at fixed positions against recorded ones: the cheapest gate that sees a change of quality
(docs/methods.md#divergence).

Three questions. How far is a cell from unquantized weights, against a limit for its kind? Is it farther than when it was
recorded? Is it still the same as when it was recorded, up to what another execution mode changes? Each is answered from a mean over
prompts with its 99 % limits: FAIL where the lower one is beyond the threshold, PASS where the upper one is within.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.numerics.near_ties import STEPS, UNKNOWN_LOGIT, rounding_step
from pytest_llminfer.numerics.truncated_kl import truncated_kl
from pytest_llminfer.stats.bootstrap import RESAMPLES, limits, resampled_means
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.generation import Scores


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a kind of cell may differ from unquantized weights.

    Attributes:
        kl: Largest mean KL, in nats.
        top1: Least share of positions with the same most likely token, 0 to 1.
        source: Where the limits come from, for the verdict.
    """

    kl: float
    top1: float
    source: str = "docs/methods.md#kl-limits, models of 7 to 8 billion parameters"


SAME_WEIGHTS, EIGHT_BIT, FOUR_BIT, THREE_BIT = "same weights", "8-bit", "4-bit", "3-bit"
LIMITS = {
    SAME_WEIGHTS: Limits(1e-3, 0.985),
    EIGHT_BIT: Limits(0.01, 0.96),
    FOUR_BIT: Limits(0.06, 0.90),
    THREE_BIT: Limits(0.15, 0.0),
}
"""For models of 7 to 8 billion parameters, against unquantized weights (docs/methods.md#kl-limits); smaller ones lose 2 to 4 times
as much."""

KINDS = {
    "none": SAME_WEIGHTS,
    **dict.fromkeys(("int8", "fp8", "w8a8", "q8_0", "fp8_e5m2"), EIGHT_BIT),
    **dict.fromkeys(("nf4", "fp4", "gptq", "awq", "w4a16", "q4_0", "q4_k_m"), FOUR_BIT),
}
"""The kind of every word for weights or a KV cache; other dtypes of a cache are unquantized."""

RATIO = 1.25
"""How many times as far as recorded a cell may be from the reference."""
NOISE_FACTOR = 4.0
NOISE_FLOOR = {"float32": 1e-9, "float16": 1e-6, "bfloat16": 1e-5}
"""Nats. The least noise that is assumed: an engine that computes batches row by row shows none, and is not free of it elsewhere."""


def kind_of(quantization: str, kv_dtype: str = "auto", *, bits: int | None = None) -> str:
    """The kind of a cell by its words; the coarser of weights and cache. bits: of a weight, where the checkpoint says so."""
    kind = KINDS[quantization] if bits is None else {8: EIGHT_BIT, 4: FOUR_BIT, 3: THREE_BIT}.get(bits, KINDS[quantization])
    return max(kind, KINDS.get(kv_dtype, SAME_WEIGHTS), key=list(LIMITS).index)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two engines at the same positions of P prompts.

    Attributes:
        kl: (P,) float64, mean KL of each prompt in nats; NaN where probabilities are missing.
        top1: (P,) float64, share of each prompt's positions with the same most likely token, near ties counted as the same.
        positions: Positions of all prompts together; 0 where nothing can be compared.
        flips: Positions with another most likely token, near ties included.
        near_ties: Those of the flips where both sides saw a tie within rounding.
        problems: Why nothing can be judged; empty if it can.
    """

    kl: np.ndarray
    top1: np.ndarray
    positions: int
    flips: int
    near_ties: int
    problems: tuple[str, ...] = ()

    @property
    def worst(self) -> list[str]:
        """The prompts that are farthest apart, as lines."""
        order = np.argsort(-self.kl)[:3]
        return [f"prompt {number}: KL {self.kl[number]:.3g} nats, same top-1 {self.top1[number]:.1%}" for number in order]


def compare(*, candidate: Sequence[Scores], reference: Sequence[Scores], dtype: str) -> Comparison:
    """Compare both at every position of every prompt. Prompts and positions must be the same on both sides.

    dtype: of the logits, in the words of a cell or of torch; it sets what counts as a near tie.
    """
    shapes = [[scores.logprobs.shape for scores in side] for side in (candidate, reference)]
    if not reference or not shapes[1][0][0] or shapes[0] != shapes[1]:
        count = [sum(shape[0] for shape in side) for side in shapes]
        line = f"{len(candidate)} prompts with {count[0]} positions here, {len(reference)} with {count[1]} in the reference"
        return Comparison(np.zeros(1), np.zeros(1), 0, 0, 0, (f"nothing can be compared: {line}",))
    kl = [truncated_kl(theirs, ours) for ours, theirs in zip(candidate, reference, strict=True)]
    broken = int(sum(np.isnan(values).sum() for values in kl))
    flips = [ours.top_ids[:, 0] != theirs.top_ids[:, 0] for ours, theirs in zip(candidate, reference, strict=True)]
    tolerance = STEPS * rounding_step(UNKNOWN_LOGIT, dtype)
    ties = [_near_ties(*pair, tolerance) for pair in zip(candidate, reference, flips, strict=True)]
    return Comparison(
        kl=np.array([values.mean() for values in kl]),
        top1=np.array([1 - (turned & ~tied).mean() for turned, tied in zip(flips, ties, strict=True)]),
        positions=sum(len(values) for values in kl),
        flips=int(sum(turned.sum() for turned in flips)),
        near_ties=int(sum(tied.sum() for tied in ties)),
        problems=(f"{broken} positions hold no probabilities (NaN, or a sum above 1)",) if broken else (),
    )


def _near_ties(ours: Scores, theirs: Scores, flips: np.ndarray, tolerance: float) -> np.ndarray:
    tied = np.zeros(len(flips), bool)
    for position in np.flatnonzero(flips):
        margins = [_margin(side, other.top_ids[position, 0], int(position)) for side, other in ((ours, theirs), (theirs, ours))]
        tied[position] = max(margins) <= tolerance
    return tied


def _margin(scores: Scores, rival: int, position: int) -> float:
    """By how much a side prefers its own likeliest token to the other's; infinite where it does not list that."""
    listed = scores.top_logprobs[position][scores.top_ids[position] == rival]
    return float(scores.top_logprobs[position, 0] - listed[0]) if len(listed) else float("inf")


def check_divergence(
    *, candidate: Sequence[Scores], reference: Sequence[Scores], limit: Limits, kind: str, dtype: str, of: str
) -> Verdict:
    """Whether a cell is within both limits of its kind from the reference ``of`` (docs/methods.md#kl-limits).

    candidate, reference: the same prompts and positions in the same order. kind: a key of ``LIMITS``. dtype: of the logits.
    """
    found = compare(candidate=candidate, reference=reference, dtype=dtype)
    kl_means, top1_means = resampled_means(found.kl, found.top1)
    (low, high), (least, most) = limits(kl_means), limits(top1_means)
    if found.problems or low > limit.kl or most < limit.top1:
        outcome = Outcome.FAIL
    else:
        outcome = Outcome.PASS if high <= limit.kl and least >= limit.top1 else Outcome.INCONCLUSIVE
    return Verdict(
        outcome=outcome,
        claim=f"next-token distributions are those of {of}, within what {kind} may change",
        key=f"KL {found.kl.mean():.2g}, {found.top1.mean():.1%}",
        measurements=_measurements(found, kl=limit.kl, top1=limit.top1),
        threshold=f"KL <= {limit.kl:g} nats and same top-1 >= {limit.top1:.1%}, by their 99 % limits",
        threshold_source=f"{kind}: {limit.source}",
        smallest_detectable=f"a mean KL of {limit.kl + found.kl.mean() - low:.3g} nats, or a same top-1 of "
        f"{limit.top1 - most + found.top1.mean():.1%}",
        advice="compare versions, dtype and quantization settings with those of the reference; then look at the worst prompts",
        details=first_offenders([*found.problems, *found.worst]) if outcome is not Outcome.PASS else (),
    )


def check_divergence_ratio(
    *, candidate: Sequence[Scores], recorded: Sequence[Scores], reference: Sequence[Scores], noise: float, dtype: str, of: str
) -> Verdict:
    """Whether a cell is no farther from the reference ``of`` than 1.25 times what it was when it was recorded.

    noise: nats, the KL that two benign runs of one cell show; it is added to the recorded side, so that two figures that are
    both rounding do not make a ratio. Prompts are drawn in pairs.
    """
    found = compare(candidate=candidate, reference=reference, dtype=dtype)
    before = compare(candidate=recorded, reference=reference, dtype=dtype)
    floor = max(noise, NOISE_FLOOR[torch_dtype(dtype)])
    problems = (*found.problems, *before.problems)
    low, high, ratio = float("inf"), float("inf"), float("inf")
    if not problems:
        new, old = resampled_means(found.kl, before.kl)
        low, high = limits(new / (old + floor))
        ratio = float(found.kl.mean() / (before.kl.mean() + floor))
    return Verdict(
        outcome=Outcome.FAIL if problems or low > RATIO else Outcome.PASS if high <= RATIO else Outcome.INCONCLUSIVE,
        claim=f"next-token distributions are no farther from {of} than when this cell was recorded",
        key=f"KL {found.kl.mean():.2g}, {ratio:.2f} x record",
        measurements=(
            Measurement("ratio to the recorded KL", ratio, "", len(found.kl), f"99 % limits {low:.3g} and {high:.3g}", 1.0, RATIO),
            Measurement("recorded mean KL", float(before.kl.mean()), "nats", before.positions, f"{floor:.2g} are added as noise"),
            *_measurements(found),
        ),
        threshold=f"ratio <= {RATIO:g}, by its 99 % limits",
        threshold_source="this cell's own record",
        smallest_detectable=f"{RATIO + ratio - low:.3g} times the recorded KL"
        if not problems
        else "nothing: there is no comparison",
        advice="compare the versions of the engine and of its quantization with those of the record",
        details=first_offenders([*problems, *found.worst]) if problems or high > RATIO else (),
    )


def check_unchanged(
    *, candidate: Sequence[Scores], recorded: Sequence[Scores], noise: float, dtype: str, same_setting: bool
) -> Verdict:
    """Whether a cell still gives the distributions of its own record.

    PASS up to four times what another execution mode changes (noise: nats, measured when the record was made). FAIL beyond what
    other kernels may change with the same weights. Between the two something computes otherwise at equal quality, as after an
    upgrade: INCONCLUSIVE, a warning. same_setting: whether device and parallelism are those of the record; where they are not,
    other kernels are expected, and all that they may change passes.
    """
    found = compare(candidate=candidate, reference=recorded, dtype=dtype)
    floor = max(noise, NOISE_FLOOR[torch_dtype(dtype)])
    most = max(NOISE_FACTOR * floor, LIMITS[SAME_WEIGHTS].kl)
    limit = NOISE_FACTOR * floor if same_setting else most
    low, high = limits(resampled_means(found.kl)[0])
    outcome = Outcome.FAIL if found.problems or low > most else Outcome.PASS if high <= limit else Outcome.INCONCLUSIVE
    return Verdict(
        outcome=outcome,
        claim="next-token distributions are those that this cell gave when the baseline was recorded",
        key=f"KL {found.kl.mean():.2g} to record",
        measurements=(
            *_measurements(found, kl=most),
            Measurement("noise of another execution mode", noise, "nats", found.positions),
        ),
        threshold=f"PASS if KL <= {limit:.3g} nats, FAIL if KL > {most:.3g} nats, by its 99 % limits",
        threshold_source=f"{NOISE_FACTOR:g} times the noise of an execution mode, {floor:.2g} nats; what other kernels may change"
        if same_setting
        else "what other kernels may change with the same weights, since device or parallelism are not those of the record",
        smallest_detectable=f"a mean KL of {limit + found.kl.mean() - low:.3g} nats",
        advice="something computes otherwise than it did: if the divergence from the reference is as it was and the change is "
        "wanted (another kernel), record a new baseline with --update-baselines",
        details=first_offenders([*found.problems, *found.worst]) if outcome is not Outcome.PASS else (),
    )


def _measurements(found: Comparison, *, kl: float | None = None, top1: float | None = None) -> tuple[Measurement, ...]:
    """kl, top1: the limits of both, where there are any."""
    kl_means, top1_means = resampled_means(found.kl, found.top1)
    (low, high), (least, most) = limits(kl_means), limits(top1_means)
    spread, share = f"over {len(found.kl)} prompts, {RESAMPLES:,} resamples", float(found.top1.mean())
    return (
        Measurement(
            "mean KL", float(found.kl.mean()), "nats", found.positions, f"99 % limits {low:.3g} and {high:.3g} {spread}", limit=kl
        ),
        Measurement(
            "same top-1",
            share,
            "",
            found.positions,
            f"99 % limits {least:.2%} and {most:.2%}",
            limit=top1,
            shown=f"{share:.2%}",
        ),
        Measurement("other top-1", found.flips, "positions", found.positions, f"{found.near_ties} of them near ties"),
    )
