"""Greedy answers compared beyond a near tie: what is caught there that a comparison that stops would miss."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_llminfer.families.execution_modes.resynchronised import check_resynchronised_tokens, prompts_with_ties
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
    assert judged(*pair, {0: teacher_forced(ties)}, rms=1.0).outcome is Outcome.PASS
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


def drawn(rng: np.random.Generator, prompts: int, rms: float) -> tuple[list[Generation], list[Generation], dict[int, Scores]]:
    """A reference with gaps of an exponential distribution, and another run whose logits differ by ``rms`` each."""
    candidate, reference, scores = [], [], {}
    for prompt in range(prompts):
        gaps = rng.exponential(2.0, LENGTH)
        after = gaps + np.sqrt(2) * rms * rng.standard_normal(LENGTH)
        sides = []
        for gap in (gaps, after):
            own = -np.log1p(np.exp(-np.abs(gap)))
            swapped = gap < 0
            ids = np.stack([np.arange(LENGTH), RIVAL + np.arange(LENGTH)], axis=1).astype(np.int32)
            ids[swapped] = ids[swapped][:, ::-1]
            sides.append((ids, np.stack([own, own - np.abs(gap)], axis=1).astype(np.float32)))
        (ids, logprobs), (other_ids, other) = sides
        theirs = Generation(tuple(ids[:, 0].tolist()), "length", top_ids=ids, top_logprobs=logprobs)
        ours = Generation(tuple(other_ids[:, 0].tolist()), "length", top_ids=other_ids, top_logprobs=other)
        reference.append(theirs)
        candidate.append(ours)
        scores[prompt] = Scores(np.where(other_ids[:, 0] == ids[:, 0], other[:, 0], other[:, 1]), other_ids, other)
    return candidate, reference, scores


def test_as_many_turns_as_rounding_makes_pass_at_any_depth() -> None:
    """From 2 to 12 % of tokens turn, where a fixed share of 6 % was the limit: 15 sessions each."""
    for rms in (0.1, 0.3, 0.6):
        turned = []
        for seed in range(15):
            candidate, reference, scores = drawn(np.random.default_rng(seed), 8, rms)
            verdict = judged(candidate, reference, scores, noise=3 * rms, rms=rms)
            assert verdict.outcome is Outcome.PASS, str(verdict)
            (ties,) = (each for each in verdict.measurements if each.name == "near ties that turned")
            turned.append(float(ties.value) / present(ties.n))
        assert 0.015 < np.mean(turned) < 0.14


def test_far_more_turns_than_rounding_makes_fail() -> None:
    """Every gap is half a nat, five times the rounding of one logit: 1.5 of 40 turns are to be expected at twice that."""
    reference = answer()
    present(reference.top_logprobs)[:] = [-0.5, -1.0]
    for turned, outcome in ((3, Outcome.PASS), (10, Outcome.FAIL)):
        changes = dict.fromkeys(range(0, 4 * turned, 4), 0.5)
        verdict = judged([answer(changes)], [reference], {0: teacher_forced(changes)}, noise=0.3, rms=0.1)
        assert verdict.outcome is outcome, str(verdict)
