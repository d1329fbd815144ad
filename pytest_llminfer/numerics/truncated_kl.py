"""How far two next-token distributions are apart, seen through the k most likely tokens of either (docs/methods.md#truncated-kl).

Whatever is folded together on both sides can only make two distributions look closer (data processing inequality; Cover and
Thomas, Elements of Information Theory, 2.8), so the figure is a lower bound of the true Kullback-Leibler divergence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pytest_llminfer.observations.generation import Scores

SMALLEST_TAIL = 1e-6
"""Below this, what a sum of float32 probabilities leaves of 1 is rounding. Both sides are raised to it: the bound can only fall."""

_SMALLEST = 1e-30
_MOST_MASS = 1e-3
"""By how much the listed probabilities of a position may exceed 1 before they count as invalid."""


def truncated_kl(reference: Scores, candidate: Scores, *, smallest_tail: float = SMALLEST_TAIL) -> np.ndarray:
    """Per position a lower bound, float64 (T,) in nats, of KL(reference || candidate) over the whole vocabulary.

    Each token that both list is a symbol, and everything else is one more, the tail. Of tokens that one side alone lists, the
    other side's probability is unknown, but no larger than the least that it lists, nor together than what its list leaves of 1:
    where that makes the bound sharper, the tail is cut in two, with the unknown share chosen so that the divergence is least.
    Without this, two lists that have no token in common would look alike. NaN where a side is no distribution.

    Terms are p ln(p/q) - p + q, which are never negative and sum to the same for distributions. smallest_tail: what tails are
    raised to; rounding of d in a sum of probabilities leaves up to d^2 / (2 smallest_tail) nats.
    """
    ours, theirs = _probabilities(candidate), _probabilities(reference)
    same = reference.top_ids[:, :, None] == candidate.top_ids[:, None, :]
    in_both = same.any(axis=2)
    partner = np.take_along_axis(ours, same.argmax(axis=2), axis=1)
    common = np.where(in_both, _term(theirs, partner), 0.0).sum(axis=1)

    reference_tail = 1.0 - np.where(in_both, theirs, 0.0).sum(axis=1)
    candidate_tail = 1.0 - np.where(in_both, partner, 0.0).sum(axis=1)
    missing_here = np.where(in_both, 0.0, theirs).sum(axis=1)
    missing_there = np.where(same.any(axis=1), 0.0, ours).sum(axis=1)
    most_here = np.minimum((~in_both).sum(axis=1) * ours.min(axis=1), 1.0 - ours.sum(axis=1))
    most_there = np.minimum((~same.any(axis=1)).sum(axis=1) * theirs.min(axis=1), 1.0 - theirs.sum(axis=1))

    tails = np.maximum.reduce(
        [
            _term(np.maximum(reference_tail, smallest_tail), np.maximum(candidate_tail, smallest_tail)),
            _cut(smallest_tail, known=missing_here, of=reference_tail, most=most_here, other=candidate_tail),
            _cut(smallest_tail, known=missing_there, of=candidate_tail, most=most_there, other=reference_tail, swapped=True),
        ]
    )
    found: np.ndarray = np.where(_is_distribution(theirs) & _is_distribution(ours), common + tails, np.nan)
    return found


def _cut(
    least: float, *, known: np.ndarray, of: np.ndarray, most: np.ndarray, other: np.ndarray, swapped: bool = False
) -> np.ndarray:
    """The divergence of two tails cut in two: ``known`` and the rest on one side, a share of at most ``most`` on the other.

    That share is what makes the divergence least: in proportion, or as near to it as ``most`` allows (it is convex).
    """
    known, of, other = (np.maximum(value, least) for value in (known, of, other))
    share = np.minimum(np.maximum(most, least), other * np.minimum(known / of, 1.0))
    pairs = ((known, share), (np.maximum(of - known, least), np.maximum(other - share, least)))
    return sum((_term(b, a) if swapped else _term(a, b) for a, b in pairs), start=np.zeros_like(of))


def _term(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    p, q = np.maximum(p, _SMALLEST), np.maximum(q, _SMALLEST)
    # Never negative but for its own rounding.
    return np.asarray(np.maximum(p * np.log(p / q) - p + q, 0.0))


def _probabilities(scores: Scores) -> np.ndarray:
    return np.exp(scores.top_logprobs.astype(np.float64))


def _is_distribution(probabilities: np.ndarray) -> np.ndarray:
    total = probabilities.sum(axis=1)
    return np.asarray(np.isfinite(total) & (total <= 1 + _MOST_MASS))
