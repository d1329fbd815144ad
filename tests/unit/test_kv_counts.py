"""What must have happened for a comparison to mean anything: prefixes found, requests preempted, bits compared."""

from __future__ import annotations

import numpy as np
import pytest

from pytest_llminfer.families.execution_modes.batch_invariance import check_batch_invariance
from pytest_llminfer.families.execution_modes.preemption import check_preempted
from pytest_llminfer.families.execution_modes.prefixes import CachedTokens, check_prefix_hits
from pytest_llminfer.observations.generation import Generation
from pytest_llminfer.observations.kv_cache import CacheCounters
from pytest_llminfer.verdict import Outcome

RIGHT = CachedTokens(300, 0, 256, ((255, 128), (0, 0)))


@pytest.mark.parametrize(("block", "found"), [(128, RIGHT), (16, CachedTokens(97, 0, 96, ((95, 80), (0, 0))))])
def test_prefixes_are_found_to_the_last_whole_block(block: int, found: CachedTokens) -> None:
    verdict = check_prefix_hits(found=[found], block=block)
    assert verdict.outcome is Outcome.PASS, verdict.details


def test_every_token_of_a_block_of_one_can_be_found_but_the_last() -> None:
    assert check_prefix_hits(found=[CachedTokens(97, 0, 96, ((95, 95), (0, 0)))], block=1).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (CachedTokens(300, 128, 256, ((255, 128),)), "after the cache was emptied: 128 tokens found instead of 0"),
        (CachedTokens(300, 0, 0, ((255, 128),)), "asked again: 0 tokens found instead of 256"),
        (CachedTokens(300, 0, 299, ((255, 128),)), "asked again: 299 tokens found instead of 256"),
        (CachedTokens(300, 0, None, ((255, 128),)), "an unknown number of tokens found"),
        (CachedTokens(300, 0, 256, ((255, 256),)), "with token 255 changed: 256 tokens found instead of 128"),
        (CachedTokens(300, 0, 256), "no prompt with a changed token"),
        (CachedTokens(100, 0, 0, ((99, 0),)), "no whole block"),
    ],
)
def test_a_prefix_that_is_stale_or_missing_is_named(found: CachedTokens, line: str) -> None:
    verdict = check_prefix_hits(found=[found], block=128)
    assert verdict.outcome is Outcome.FAIL
    assert any(line in detail for detail in verdict.details)


def test_no_prompt_is_no_pass() -> None:
    assert check_prefix_hits(found=[], block=16).outcome is Outcome.FAIL


@pytest.mark.parametrize(("count", "outcome"), [(21, Outcome.PASS), (0, Outcome.FAIL), (None, Outcome.FAIL)])
def test_preemption_must_have_happened(count: int | None, outcome: Outcome) -> None:
    assert check_preempted(counters=CacheCounters(preemptions=count), requests=8).outcome is outcome


def answer(value: float = -0.5, token: int = 3) -> Generation:
    ids, logprobs = np.array([[token, 4]], np.int32), np.array([[value, -2.0]], np.float32)
    return Generation((token,), "length", top_ids=ids, top_logprobs=logprobs)


def test_the_rate_is_measured_and_demanded_only_where_it_is_promised() -> None:
    moved = float(np.nextafter(np.float32(-0.5), np.float32(0)))
    alone, batched = [answer(), answer(moved), answer(token=5), answer()], [answer()] * 4
    verdict = check_batch_invariance(alone=alone, batched=batched)
    assert verdict.outcome is Outcome.PASS
    assert "equal tokens and log-probabilities: 50.0%" in str(verdict)
    promised = check_batch_invariance(alone=alone, batched=batched, promised="VLLM_BATCH_INVARIANT=1")
    assert promised.outcome is Outcome.FAIL
    assert any("prompt 1: same tokens, log-probabilities differ" in line for line in promised.details)
    assert any("prompt 2: other tokens from position 0" in line for line in promised.details)
    assert check_batch_invariance(alone=batched, batched=batched, promised="x").outcome is Outcome.PASS


def test_answers_without_bits_are_not_compared() -> None:
    nothing = [Generation((1,), "length")]
    assert check_batch_invariance(alone=nothing, batched=nothing).outcome is Outcome.FAIL
    assert check_batch_invariance(alone=[], batched=[]).outcome is Outcome.FAIL
    assert check_batch_invariance(alone=[answer()], batched=[answer()] * 2).outcome is Outcome.FAIL
