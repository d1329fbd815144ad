"""How far two execution modes of one engine are apart at each position of the same tokens, in nats.

KL and k3 are two units: of a greedy token k3 is d^2 / 2 for a difference d of logits, a KL truncated to the five likeliest is
that times their probability, which is 4e-3 where predictions are flat. One is never compared with the other
(docs/methods.md#served-dtype).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.numerics.truncated_kl import truncated_kl
from pytest_llminfer.observations.generation import Scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.generation import Generation

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
    cut = [first(side, length) for side in (ours, theirs)]
    if not all(len(side.logprobs) == length for side in cut):
        return np.full(length, np.nan)
    found = truncated_kl(cut[1], cut[0], smallest_tail=_SMALLEST_TAIL)
    # Equal lists leave 1e-20 of arithmetic, which would count as a cache that was quantized.
    return np.where(found < _ZERO, 0.0, found)


def first(scores: Scores, length: int) -> Scores:
    """The same of the first positions."""
    return Scores(scores.logprobs[:length], scores.top_ids[:length], scores.top_logprobs[:length])


def given(logprobs: np.ndarray, tokens: Sequence[int]) -> Scores:
    """Log-probabilities (T,) of given tokens (T,), as :class:`Scores` that list nothing else."""
    return Scores(logprobs, np.asarray(tokens, np.int32)[:, None], np.asarray(logprobs, np.float32)[:, None])


def k3_of_answers(candidate: Sequence[Generation], reference: Sequence[Generation]) -> list[np.ndarray]:
    """Per prompt k3 of the tokens that two answers have in common, float64 (T,), at positions with the same context."""
    found = []
    for ours, theirs in zip(candidate, reference, strict=True):
        length = same_context(ours, theirs)
        length -= ours.token_ids[:length] != theirs.token_ids[:length]
        found += k3([decoded(ours).logprobs[:length]], [decoded(theirs).logprobs[:length]])
    return found
