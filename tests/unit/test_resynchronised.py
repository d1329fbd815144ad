"""Greedy answers compared beyond a near tie: what is caught there that a comparison that stops would miss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from pytest_llminfer.families.execution_modes.resynchronised import binomial_tail, check_resynchronised_tokens, prompts_with_ties
from pytest_llminfer.families.tokens.check import check_same_greedy_tokens
from pytest_llminfer.observations.generation import Generation, Scores
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.present import present

LENGTH = 40
RIVAL = 500


def answer(changes: dict[int, float] | None = None) -> Generation:
    """Tokens 0, 1, 2, …, each with a rival 500 more; at the changed positions the rival leads by this margin in nats."""
    ids, logprobs = [], []
    for position in range(LENGTH):
        margin = (changes or {}).get(position)
        own, rival = position, RIVAL + position
        ids.append([own, rival] if margin is None else [rival, own])
        logprobs.append([-0.1, -3.0] if margin is None else [-0.6, -0.6 - margin])
    return Generation(
        tuple(row[0] for row in ids), "length", top_ids=np.array(ids, np.int32), top_logprobs=np.array(logprobs, np.float32)
    )


def tied(*positions: int) -> Generation:
    """The reference, which saw a tie at these positions and chose the usual token."""
    found = answer()
    for position in positions:
        present(found.top_logprobs)[position] = [-0.6, -0.65]
    return found


def teacher_forced(changes: dict[int, float]) -> Scores:
    """What the candidate predicts for the reference's tokens."""
    found = answer(changes)
    given = np.where(present(found.top_ids) == np.arange(LENGTH)[:, None], present(found.top_logprobs), 0).sum(axis=1)
    return Scores(given, present(found.top_ids), present(found.top_logprobs))


def judged(candidate: list[Generation], reference: list[Generation], scores: dict[Any, Any] | None = None, **more: Any) -> Verdict:
    return check_resynchronised_tokens(
        candidate=candidate, reference=reference, teacher_forced=scores or {}, dtype="bf16", claim="same", **more
    )


def test_after_a_near_tie_the_comparison_goes_on_to_the_end() -> None:
    candidate, reference = [answer({5: 0.1})], [tied(5)]
    assert prompts_with_ties(candidate, reference, dtype="bf16") == [0]
    verdict = judged(candidate, reference, {0: teacher_forced({5: 0.1})})
    assert verdict.outcome is Outcome.PASS
    assert "40 tokens, 1 ties" in verdict.key
    assert judged(candidate, reference).outcome is Outcome.INCONCLUSIVE


def test_a_fault_after_a_near_tie_is_caught_where_a_comparison_that_stops_passes() -> None:
    candidate, reference = [answer({37: 0.1, 39: 2.0})], [tied(37)]
    stopping = check_same_greedy_tokens(candidate=candidate, reference=reference, dtype="bf16", claim="same")
    assert stopping.outcome is Outcome.PASS
    verdict = judged(candidate, reference, {0: teacher_forced({37: 0.1, 39: 2.0})})
    assert verdict.outcome is Outcome.FAIL
    assert any("position 39: token 539 instead of token 39" in line for line in verdict.details)


def test_several_ties_are_counted_and_too_many_fail() -> None:
    ties = dict.fromkeys(range(3, LENGTH, 3), 0.1)
    pair = [answer(ties)], [tied(*ties)]
    verdict = judged(*pair, {0: teacher_forced(ties)})
    assert verdict.outcome is Outcome.FAIL
    assert "more of them than rounding makes" in str(verdict)
    assert judged(*pair, {0: teacher_forced(ties)}, usual_rate=0.2).outcome is Outcome.PASS
    few = {3: 0.1, 20: 0.1}
    assert judged([answer(few)], [tied(*few)], {0: teacher_forced(few)}).outcome is Outcome.PASS


def test_a_difference_that_is_no_tie_fails_and_is_not_forced() -> None:
    candidate, reference = [answer({5: 2.0})], [answer()]
    assert prompts_with_ties(candidate, reference, dtype="bf16") == []
    assert judged(candidate, reference).outcome is Outcome.FAIL


def test_noise_of_the_engine_widens_a_tie() -> None:
    candidate, reference = [answer({5: 0.5})], [tied(5)]
    present(reference[0].top_logprobs)[5] = [-0.5, -1.0]
    assert judged(candidate, reference).outcome is Outcome.FAIL
    assert judged(candidate, reference, {0: teacher_forced({5: 0.5})}, noise=0.3).outcome is Outcome.PASS


def test_lost_answers_and_other_lengths_fail() -> None:
    assert judged([answer()], [answer(), answer()]).outcome is Outcome.FAIL
    short = answer()
    short = Generation(
        short.token_ids[:30], "stop", top_ids=present(short.top_ids)[:30], top_logprobs=present(short.top_logprobs)[:30]
    )
    assert judged([short], [answer()]).outcome is Outcome.FAIL
    assert judged([], []).outcome is Outcome.FAIL


@pytest.mark.parametrize(("count", "n", "share"), [(0, 10, 0.1), (1, 40, 0.06), (13, 40, 0.06), (30, 374, 0.06), (200, 4000, 0.06)])
def test_the_tail_is_that_of_the_binomial_distribution(count: int, n: int, share: float) -> None:
    assert binomial_tail(count, n, share) == pytest.approx(binom.sf(count - 1, n, share), rel=1e-6, abs=1e-12)
