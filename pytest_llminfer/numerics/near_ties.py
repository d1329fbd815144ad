"""Greedy decoding under rounding: where two runs part, and whether the choice there was a tie within rounding.

Two tokens whose logits differ by no more than two steps of the number format may change places through a benign
change of the order of additions; two that differ by more may not (docs/methods.md#near-ties).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from pytest_llminfer.models.shape import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.generation import Generation

STEPS = 2
"""How many rounding steps apart two logits may be and still count as tied."""

MOST_NOISE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""Nats. Two runs that differ by more differ by a fault, which must not widen the tolerance of its own detection."""

_SIGNIFICAND_BITS = {"float32": 24, "float16": 11, "bfloat16": 8}
_SMALLEST_EXPONENT = {"float32": -126, "float16": -14, "bfloat16": -126}
UNKNOWN_LOGIT = 16.0
"""Assumed where an engine does not report its largest logit: two steps of bf16 are then 0.25 nats."""


def rounding_step(value: float, dtype: str) -> float:
    """The distance between neighbouring numbers of ``dtype`` at the magnitude of ``value`` (one ulp).

    2^(e - p + 1) for 2^e <= abs(value) < 2^(e+1) and p significand bits; subnormal numbers have the step of the smallest
    normal one (IEEE 754-2019, 3.3). ``dtype`` in the words of a cell or of torch: fp32, fp16, bf16.
    """
    name = torch_dtype(dtype)
    exponent = math.frexp(value)[1] - 1 if value else _SMALLEST_EXPONENT[name]
    return math.ldexp(1.0, max(exponent, _SMALLEST_EXPONENT[name]) - _SIGNIFICAND_BITS[name] + 1)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first position at which two greedy answers to one prompt differ.

    Attributes:
        position: Index of the generated token, from 0.
        candidate_token: What the candidate chose; None where its answer has ended before.
        reference_token: What the reference chose; None where its answer has ended before.
        margins: By how much each side preferred its own token to the other's, candidate first, in nats (equal to the difference of
            the logits). None where the other's token is not among the top k that the side reported.
        at_least: The least that each margin can be, candidate first, in nats; infinite where nothing is known, so that no tie is
            assumed.
        tolerance: The largest margin of a tie, in nats.
    """

    position: int
    candidate_token: int | None
    reference_token: int | None
    margins: tuple[float | None, float | None]
    at_least: tuple[float, float]
    tolerance: float

    @property
    def is_tie(self) -> bool:
        """Whether both sides saw a tie within rounding."""
        return all(margin is not None and margin <= self.tolerance for margin in self.margins)

    @property
    def is_unresolved(self) -> bool:
        """Whether it may have been a tie: nothing rules it out, but a top-k list was too short to prove it."""
        within = [
            least <= self.tolerance if margin is None else margin <= self.tolerance
            for margin, least in zip(self.margins, self.at_least, strict=True)
        ]
        return all(within) and not self.is_tie


def first_divergence(candidate: Generation, reference: Generation, *, dtype: str, noise: float = 0.0) -> Divergence | None:
    """Where the two answers part; None if the tokens are the same, and of the same number.

    noise: from :func:`measured_noise`, in nats; the tolerance of a tie is no less than twice that, once a side.
    """
    for position, (ours, theirs) in enumerate(zip_longest(candidate.token_ids, reference.token_ids)):
        if ours != theirs:
            return divergence_at(candidate, reference, position, dtype=dtype, noise=noise)
    return None


def divergence_at(candidate: Generation, reference: Generation, position: int, *, dtype: str, noise: float = 0.0) -> Divergence:
    """How the two answers differ at a position of which both saw the same context."""
    ours, theirs = (answer.token_ids[position] if position < len(answer.token_ids) else None for answer in (candidate, reference))
    candidate_margin, candidate_least = _margin(candidate, position, ours, theirs)
    reference_margin, reference_least = _margin(reference, position, theirs, ours)
    return Divergence(
        position=position,
        candidate_token=ours,
        reference_token=theirs,
        margins=(candidate_margin, reference_margin),
        at_least=(candidate_least, reference_least),
        tolerance=max(2 * noise, _tolerance((candidate, reference), position, dtype)),
    )


def measured_noise(first: Sequence[Generation], second: Sequence[Generation], *, dtype: str) -> float:
    """The largest difference, in nats, between the log-probabilities of two benign runs of the same prompts, capped by dtype.

    Over the two likeliest tokens of each run, between which ties happen, at every position before the first at which the
    runs choose differently: that one is judged, and must not widen its own tolerance. Rounding within a deep model moves
    logits by more than their own last place, so the tolerance of a tie is measured in the engine, not only computed
    (docs/methods.md#near-ties). 0.0 without log-probabilities.
    """
    largest = 0.0
    for ours, theirs in zip(first, second, strict=True):
        for position, (own, other) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)):
            if own != other:
                break
            here, there = _listed(ours, position), _listed(theirs, position)
            rivals = {*sorted(here, key=here.__getitem__)[-2:], *sorted(there, key=there.__getitem__)[-2:]}
            largest = max([largest, *(abs(here[token] - there[token]) for token in rivals & here.keys() & there.keys())])
    return min(largest, MOST_NOISE[torch_dtype(dtype)])


def rms_noise(first: Sequence[Generation], second: Sequence[Generation], *, dtype: str) -> float:
    """The root mean square, in nats, of what two benign runs of the same prompts differ by in one logit, capped by dtype.

    Over the tokens that both list, centred at each position, at every position before the first at which they choose differently.
    0.0 without log-probabilities.
    """
    squares, values = 0.0, 0
    for ours, theirs in zip(first, second, strict=True):
        for position, (own, other) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=False)):
            if own != other:
                break
            here, there = _listed(ours, position), _listed(theirs, position)
            errors = [here[token] - there[token] for token in here.keys() & there.keys()]
            if len(errors) > 1:
                middle = math.fsum(errors) / len(errors)
                squares += math.fsum((error - middle) ** 2 for error in errors)
                values += len(errors) - 1
    return min(math.sqrt(squares / values) if values else 0.0, MOST_NOISE[torch_dtype(dtype)])


def turning_probability(answer: Generation, position: int, *, rms: float, dtype: str, factor: float = 1.0) -> float:
    """How likely rounding is to turn this choice: Phi(-gap / s), s = sqrt(2) ``rms`` (docs/methods.md#near-ties).

    gap: of the logits of the two likeliest tokens. rms: in nats, of what rounding makes of one logit, from
    :func:`rms_noise`; at least what storing it in ``dtype`` on both sides makes. factor: how many times that is taken. 0.0 where
    fewer than two tokens are listed.
    """
    listed = sorted(_listed(answer, position).values(), reverse=True)
    if len(listed) < 2:  # noqa: PLR2004 - a gap is between two
        return 0.0
    # A stored logit is off by up to half a step, evenly: step / sqrt(12), on each of the two sides.
    least = _tolerance((answer, answer), position, dtype) / STEPS / math.sqrt(6)
    return 0.5 * math.erfc((listed[0] - listed[1]) / (2 * factor * max(rms, least)))


def _listed(answer: Generation, position: int) -> dict[int, float]:
    if answer.top_ids is None or answer.top_logprobs is None:
        return {}
    listed = zip(answer.top_ids[position], answer.top_logprobs[position], strict=True)
    return {int(token): float(value) for token, value in listed}


def _margin(answer: Generation, position: int, own: int | None, other: int | None) -> tuple[float | None, float]:
    """The margin, and the least it can be; (None, infinity) where nothing is known, so that no tie is assumed."""
    if own is None or other is None or answer.top_ids is None or answer.top_logprobs is None:
        return None, math.inf
    logprobs = _listed(answer, position)
    if own not in logprobs:
        return None, math.inf
    if other in logprobs:
        margin = logprobs[own] - logprobs[other]
        return (margin, margin) if not math.isnan(margin) else (None, math.inf)
    return None, logprobs[own] - min(logprobs.values())


def _tolerance(answers: tuple[Generation, Generation], position: int, dtype: str) -> float:
    known = [
        abs(float(answer.max_logit[position]))
        for answer in answers
        if answer.max_logit is not None and position < len(answer.max_logit)
    ]
    return STEPS * rounding_step(max(known, default=UNKNOWN_LOGIT), dtype)
