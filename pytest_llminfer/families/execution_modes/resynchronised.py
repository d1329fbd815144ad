"""Greedy decoding compared to its end: after a near tie both sides are given the same tokens again, and the comparison goes on.

A comparison that stops at the first tie never sees what a late fault does, and one that goes on with two contexts compares nothing
(docs/methods.md#near-ties). What the candidate would have chosen after a tie is read from its scores of the reference's own tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.families.tokens.check import COMPARED, describe
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.numerics.near_ties import STEPS, Divergence, divergence_at, first_divergence, turning_probability
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.stats.poisson_binomial import most_events
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_llminfer.observations.generation import Scores

SPREAD_FACTOR = 2.0
"""How many times the measured rounding may be, for the limit of how many near ties turn (docs/methods.md#near-ties)."""
LEVEL = 0.99
_LARGEST_OF_HUNDREDS = 3.0
"""The largest of some hundred normal numbers is three times their root mean square: what ``noise`` says of it."""


def prompts_with_ties(
    candidate: Sequence[Generation], reference: Sequence[Generation], *, dtype: str, noise: float = 0.0
) -> list[int]:
    """The numbers of the prompts that part at a near tie before their end: those whose reference the candidate has to score."""
    found = []
    for number, (ours, theirs) in enumerate(zip(candidate, reference, strict=True)):
        divergence = first_divergence(ours, theirs, dtype=dtype, noise=noise)
        if divergence is not None and divergence.is_tie and divergence.position + 1 < len(theirs.token_ids):
            found.append(number)
    return found


def check_resynchronised_tokens(
    *,
    candidate: Sequence[Generation],
    reference: Sequence[Generation],
    teacher_forced: Mapping[int, Scores],
    dtype: str,
    claim: str,
    noise: float = 0.0,
    rms: float = 0.0,
) -> Verdict:
    """Whether two greedy runs choose the same tokens in the same contexts, near ties aside.

    candidate, reference: in the same order, with top-k log-probabilities. teacher_forced: by the number of a prompt, what
    the candidate predicts for each token of the reference's answer; of a prompt that parts at a tie and is not there, nothing is
    compared after it. noise: in nats, as in ``check_same_greedy_tokens``. rms: in nats, of what rounding makes of one logit
    between two benign execution modes (``near_ties.rms_noise``): how many near ties turn follows from it and from the gaps between
    the reference's two likeliest tokens. More than the 99 % limit at twice that rounding FAIL, although each is a tie.
    """
    rms = max(rms, noise / _LARGEST_OF_HUNDREDS)
    failures: list[str] = []
    unresolved: list[str] = []
    ties: list[str] = []
    compared = 0
    usual: list[float] = []
    allowed: list[float] = []
    for number, (ours, theirs) in enumerate(zip(candidate, reference, strict=False)):
        stretches = list(_compared(ours, theirs, teacher_forced.get(number), dtype, noise))
        compared += stretches[-1][0]
        for position in range(stretches[-1][0]):
            usual.append(turning_probability(theirs, position, rms=rms, dtype=dtype))
            allowed.append(turning_probability(theirs, position, rms=rms, dtype=dtype, factor=SPREAD_FACTOR))
        for divergence in (found for _, found in stretches if found is not None):
            target = ties if divergence.is_tie else unresolved if divergence.is_unresolved else failures
            target.append(describe(number, divergence))
    if len(candidate) != len(reference):
        failures.insert(0, f"{len(candidate)} answers for {len(reference)} prompts: some were lost or added")
    total = sum(len(answer.token_ids) for answer in reference)
    most = most_events(allowed, level=LEVEL)
    outcome, reason = _outcome(total, compared, failures, unresolved, too_many=len(ties) > most)
    return Verdict(
        outcome=outcome,
        claim=claim,
        key=f"{compared:,} tokens, {len(ties)} ties" if not failures else f"{len(failures)} tokens differ",
        measurements=(
            Measurement("positions compared", compared, "tokens", total),
            Measurement("tokens that differ", len(failures), "tokens", compared),
            Measurement(
                "near ties that turned",
                len(ties),
                "tokens",
                compared,
                f"{len(ties) / max(1, compared):.2%}; {sum(usual):.1f} are to be expected",
                limit=most,
            ),
            Measurement("resynchronised", len(teacher_forced), "prompts", len(reference)),
        ),
        threshold=f"margin at a difference <= {STEPS} rounding steps of {torch_dtype(dtype)} at the largest logit"
        f"{f' or {2 * noise:.3g} nats' if noise else ''}, on both sides; at most {most} tokens turn at ties; "
        f"{COMPARED:.0%} of positions compared",
        threshold_source="floating-point format; docs/methods.md#near-ties for how many may turn",
        smallest_detectable="one other token whose margin exceeds that",
        advice="look at what changed in attention, cache or position handling; a run in fp32 tells a bug from rounding",
        details=first_offenders([*([reason] if reason else []), *failures, *unresolved, *(f"near tie, {line}" for line in ties)]),
    )


def _compared(
    ours: Generation, theirs: Generation, teacher_forced: Scores | None, dtype: str, noise: float
) -> Iterator[tuple[int, Divergence | None]]:
    """After each stretch the number of positions compared so far, and the difference that ended it; the last has none."""
    total = len(theirs.token_ids)
    first = first_divergence(ours, theirs, dtype=dtype, noise=noise)
    if first is None:
        yield total, None
        return
    position = min(first.position + 1, total)
    yield position, first
    if teacher_forced is None or not first.is_tie or len(teacher_forced.logprobs) != total:
        return
    choices = Generation(
        tuple(teacher_forced.top_ids[:, 0].tolist()), "length", None, teacher_forced.top_ids, teacher_forced.top_logprobs
    )
    for later in range(position, total):
        if choices.token_ids[later] != theirs.token_ids[later]:
            yield later + 1, divergence_at(choices, theirs, later, dtype=dtype, noise=noise)
    yield total, None


def _outcome(total: int, compared: int, failures: list[str], unresolved: list[str], *, too_many: bool) -> tuple[Outcome, str]:
    if not total:
        return Outcome.FAIL, "nothing was compared: the reference has no tokens"
    if failures:
        return Outcome.FAIL, ""
    if too_many:
        return Outcome.FAIL, "each difference is a near tie, but there are more of them than rounding makes"
    if unresolved:
        return Outcome.INCONCLUSIVE, "a top-k list is too short to tell a tie from an error"
    if compared < COMPARED * total:
        return (
            Outcome.INCONCLUSIVE,
            f"only {compared / total:.1%} of positions were compared, because near ties ended the comparison",
        )
    return Outcome.PASS, ""
