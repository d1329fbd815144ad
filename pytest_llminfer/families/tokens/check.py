"""Greedy tokens: the same in every execution mode, except for ties within rounding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.numerics.near_ties import STEPS, Divergence, first_divergence
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.observations.generation import Generation

COMPARED = 0.9
"""The share of positions that must have been compared for PASS: a near tie ends the comparison of its prompt."""


def check_same_greedy_tokens(
    *, candidate: Sequence[Generation], reference: Sequence[Generation], dtype: str, claim: str, noise: float = 0.0
) -> Verdict:
    """Whether two runs of the same prompts chose the same tokens, but for ties within rounding.

    candidate, reference: in the same order, both greedy, both with top-k log-probabilities and the largest logit of each
    step; without them any difference fails. dtype: of the logits (fp32, fp16, bf16). At the first difference in a prompt both
    sides' margins must be at most two rounding steps at the largest logit (docs/methods.md#near-ties): in fp32 that is as good as
    exact. noise: in nats, between two benign execution modes of the engine (``near_ties.measured_noise``): a margin up to twice
    that is a tie. The positions after a near tie have another context and are not compared: PASS needs 90 % of all positions
    compared.
    """
    failures: list[str] = []
    unresolved: list[str] = []
    ties: list[str] = []
    compared = 0
    for number, (ours, theirs) in enumerate(zip(candidate, reference, strict=False)):
        divergence = first_divergence(ours, theirs, dtype=dtype, noise=noise)
        if divergence is None:
            compared += len(theirs.token_ids)
            if ours.finish_reason != theirs.finish_reason:
                failures.append(f"prompt {number}: same tokens, but ended by {ours.finish_reason!r}, not {theirs.finish_reason!r}")
            continue
        compared += min(divergence.position + 1, len(theirs.token_ids))
        target = ties if divergence.is_tie else unresolved if divergence.is_unresolved else failures
        target.append(describe(number, divergence))
    if len(candidate) != len(reference):
        failures.insert(0, f"{len(candidate)} answers for {len(reference)} prompts: some were lost or added")

    total = sum(len(answer.token_ids) for answer in reference)
    distinct = len({token for answer in reference for token in answer.token_ids})
    share = compared / total if total else 0.0
    outcome, reason, advice = _greedy_outcome(total, distinct, share, failures, unresolved)
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"{compared:,} tokens" if not failures else f"{len(failures)} of {len(reference)} differ",
        measurements=(
            Measurement("positions compared", compared, "tokens", total, f"{share:.1%} of the reference"),
            Measurement("prompts that differ", len(failures), "prompts", len(reference)),
            Measurement("near ties", len(ties), "prompts", len(reference), "the rest of these prompts was not compared"),
            Measurement("distinct tokens", distinct, "tokens", total),
        ),
        threshold=f"margin at a difference <= {STEPS} rounding steps of {torch_dtype(dtype)} at the largest logit"
        f"{f' or {2 * noise:.3g} nats' if noise else ''}, on both sides; "
        f"{COMPARED:.0%} of positions compared",
        threshold_source="floating-point format"
        + (" and twice the noise measured between batched and single prompts" if noise else ""),
        smallest_detectable="one other token whose margin exceeds that",
        advice=advice,
        details=first_offenders([*([reason] if reason else []), *failures, *unresolved, *(f"near tie, {line}" for line in ties)]),
    )


def _greedy_outcome(
    total: int, distinct: int, share: float, failures: list[str], unresolved: list[str]
) -> tuple[Outcome, str, str]:
    if not total:
        return Outcome.FAIL, "nothing was compared: the reference has no tokens", "look at the prompts and at max_tokens"
    if failures:
        advice = "look at what changed in attention, cache or position handling; a run in fp32 tells a bug from rounding"
        return Outcome.FAIL, "", advice
    if unresolved:
        reason = "a top-k list is too short to tell a tie from an error"
        return Outcome.INCONCLUSIVE, reason, "ask for more log-probabilities a step"
    if distinct == 1 and total > 1:
        reason = "the reference repeats one single token, which any error would repeat as well"
        return Outcome.INCONCLUSIVE, reason, "use a trained model, or other prompts"
    if share < COMPARED:
        reason = f"only {share:.1%} of positions were compared, because near ties ended the comparison"
        return Outcome.INCONCLUSIVE, reason, "compare in fp32, or use more and shorter prompts"
    return Outcome.PASS, "", ""


def describe(prompt: int, divergence: Divergence) -> str:
    """One line: where, which tokens, and by how much each side preferred its own."""
    tokens = (divergence.candidate_token, divergence.reference_token)
    ours, theirs = ("its end" if token is None else f"token {token}" for token in tokens)
    text = f"prompt {prompt}, position {divergence.position}: {ours} instead of {theirs}"
    if None in tokens:
        return f"{text}: the answers have different lengths"
    margins = [
        f"{margin:.3g}" if margin is not None else f"more than {least:.3g}" if math.isfinite(least) else "unknown"
        for margin, least in zip(divergence.margins, divergence.at_least, strict=True)
    ]
    return f"{text}, margin {margins[0]} nats here and {margins[1]} in the reference, tie up to {divergence.tolerance:.3g}"
