"""The verdicts on a server, on replies written by hand: each claim, and what must break it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.families.serving.check import (
    check_answered,
    check_finish_reasons,
    check_key,
    check_model_list,
    check_same_replies,
    check_stop,
)
from pytest_llminfer.families.serving.latency import REQUESTS, check_latency, record
from pytest_llminfer.observations.serving import Reply
from pytest_llminfer.verdict import Outcome

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE


def reply(text: str = "ab", tokens: tuple[int, ...] | None = (1, 2), reason: str | None = "length", **fields: Any) -> Reply:
    count = {"completion_tokens": len(tokens)} if tokens is not None else {}
    return Reply(**{"status": 200, "text": text, "token_ids": tokens, "finish_reason": reason, **count, **fields})


def tops(*rows: dict[int, float]) -> dict[str, Any]:
    ids = np.array([list(row) for row in rows], np.int32)
    return {"top_ids": ids, "top_logprobs": np.array([list(row.values()) for row in rows], np.float32)}


def test_model_list() -> None:
    assert check_model_list(reply=Reply(200, models=("a", "b")), name="b").outcome is PASS
    assert check_model_list(reply=Reply(200, models=("a",)), name="b").outcome is FAIL
    assert check_model_list(reply=Reply(500, "broken", models=("b",)), name="b").outcome is FAIL


def test_answers() -> None:
    assert check_answered(replies={"chat": [reply()], "completion": [reply(text="")]}).outcome is PASS
    broken: dict[str, Any]
    for broken in ({}, {"chat": []}, {"chat": [reply(), reply(text="", tokens=())]}, {"chat": [reply(status=503, error="busy")]}):
        assert check_answered(replies=broken).outcome is FAIL


def finish(short: tuple[int, str | None], full: tuple[int, str | None]) -> Outcome:
    """Verdict on one prompt whose answers have that many tokens and those reasons; a second prompt is as it should be."""
    replies = [[reply(completion_tokens=count, reason=reason), reply(completion_tokens=good, reason=said)]
               for (count, reason), (good, said) in ((short, (4, "length")), (full, (30, "stop")))]  # fmt: skip
    return check_finish_reasons(short=replies[0], full=replies[1], short_limit=4, full_limit=64).outcome


def test_finish_reasons() -> None:
    assert finish((4, "length"), (20, "stop")) is PASS
    assert finish((2, "stop"), (2, "stop")) is PASS
    assert finish((4, "stop"), (4, "stop")) is PASS
    assert finish((4, "length"), (64, "length")) is PASS
    # As many as the limit, of servers that count the end token and of those that do not.
    assert finish((4, "length"), (4, "stop")) is PASS
    assert finish((4, None), (4, "stop")) is FAIL
    assert finish((4, "stop"), (4, "length")) is FAIL
    assert finish((4, "stop"), (20, "stop")) is FAIL
    assert finish((4, "length"), (20, "length")) is FAIL
    assert finish((2, "length"), (2, "stop")) is FAIL
    assert finish((5, "length"), (20, "stop")) is FAIL
    assert finish((4, None), (20, "stop")) is FAIL
    cut = [reply(completion_tokens=4)]
    limits = {"short_limit": 4, "full_limit": 4}
    assert check_finish_reasons(short=cut, full=[reply(completion_tokens=64)], short_limit=4, full_limit=64).outcome is INCONCLUSIVE
    both = check_finish_reasons(short=cut, full=[reply(completion_tokens=4, reason="stop")], short_limit=4, full_limit=64)
    # The full answer ended, and of the short one nobody knows: no answer was seen to be cut.
    assert both.outcome is INCONCLUSIVE
    assert "answers as long as the limit: 1 answers (n=2, cut or ended)" in str(both)
    assert check_finish_reasons(short=cut, full=[], **limits).outcome is FAIL
    assert check_finish_reasons(short=[], full=[], **limits).outcome is FAIL
    assert check_finish_reasons(short=cut, full=[reply(completion_tokens=None)], **limits).outcome is FAIL


def same(candidate: list[Reply], reference: list[Reply], dtype: str = "fp32") -> Outcome:
    return check_same_replies(candidate=candidate, reference=reference, dtype=dtype, claim="the same").outcome


def test_same_replies() -> None:
    good = [reply("ab", (1, 2)), reply("cd", (3, 4))]
    assert same(good, good) is PASS
    assert same([good[1], good[0]], good) is FAIL
    assert same(good[:1], good) is FAIL
    assert same([], []) is FAIL
    assert same([replace(good[0], finish_reason="stop"), good[1]], good) is FAIL
    assert same([replace(good[0], text="a"), good[1]], good) is FAIL
    assert same([replace(good[0], status=500), good[1]], good) is FAIL
    assert same([good[0], good[0]], [good[0], good[0]]) is INCONCLUSIVE


def test_same_replies_by_text_alone() -> None:
    good = [reply("ab", None), reply("cd", None)]
    assert same(good, good, dtype="auto") is PASS
    assert same([reply("ab", None), reply("ce", None)], good, dtype="auto") is FAIL


def test_near_ties_are_no_difference_and_clear_choices_are() -> None:
    others = [reply(f"x{number}", (number, 9)) for number in range(10, 30)]
    near = [reply("ab", (1, 2), **tops({1: -0.1, 5: -3.0}, {2: -0.70, 7: -0.71})),
            reply("ac", (1, 7), **tops({1: -0.1, 5: -3.0}, {7: -0.70, 2: -0.71}))]  # fmt: skip
    assert same([near[0], *others], [near[1], *others], dtype="bf16") is PASS
    clear = reply("ac", (1, 7), **tops({1: -0.1, 5: -3.0}, {7: -0.01, 2: -5.0}))
    assert same([near[0], *others], [clear, *others], dtype="bf16") is FAIL
    assert same([replace(near[0], top_ids=None, top_logprobs=None), *others], [near[1], *others], dtype="bf16") is FAIL
    many = [near[0]] * 4, [near[1]] * 4
    assert same([*many[0], *others[:4]], [*many[1], *others[:4]], dtype="bf16") is INCONCLUSIVE


def test_without_log_probabilities_nothing_tells_a_near_tie_from_a_fault() -> None:
    others = [reply(f"x{number}", (number, 9)) for number in range(10, 30)]

    def parted(ours: Reply, theirs: Reply) -> Outcome:
        return same([ours, *others], [theirs, *others])

    first, second = reply("abc", (1, 2, 3)), reply("axc", (1, 5, 3))
    assert parted(first, first) is PASS
    assert parted(first, second) is INCONCLUSIVE
    assert parted(first, reply("xbc", (5, 2, 3))) is FAIL
    assert parted(first, reply("ab", (1, 2))) is FAIL
    assert parted(reply("ab", (1, 2)), first) is FAIL
    known = tops({1: -0.1, 5: -9.0}, {5: -0.1, 2: -9.0}, {3: -0.1, 5: -9.0})
    assert parted(first, replace(second, **known)) is FAIL
    assert parted(replace(first, **known), second) is FAIL
    verdict = check_same_replies(candidate=[first, others[0]], reference=[second, others[0]], dtype="fp32", claim="the same")
    assert verdict.details[0] == "1 of 2 answers part where no log-probability can tell a tie from a fault"
    assert "gives log-probabilities" in verdict.advice
    assert same([first, others[0]], [second, others[1]]) is FAIL


def test_key() -> None:
    refused, good = Reply(401), Reply(200)
    assert check_key(wrong=refused, missing=refused, right=good).outcome is PASS
    assert check_key(wrong=good, missing=refused, right=good).outcome is FAIL
    assert check_key(wrong=refused, missing=good, right=good).outcome is FAIL
    assert check_key(wrong=refused, missing=refused, right=refused).outcome is FAIL
    assert check_key(wrong=Reply(500), missing=refused, right=good).outcome is FAIL


def test_stop() -> None:
    good: dict[str, Any] = {"seconds": 1.0, "left": (), "again": Reply(200)}
    assert check_stop(status=0, **good).outcome is PASS
    assert check_stop(status=-15, **good).outcome is PASS
    assert check_stop(status=1, **good).outcome is FAIL
    assert check_stop(status=None, **good).outcome is FAIL
    assert check_stop(status=-9, **good).outcome is PASS
    assert check_stop(status=-11, **good).outcome is FAIL
    assert check_stop(status=0, **{**good, "left": (77,)}).outcome is FAIL
    assert check_stop(status=0, **{**good, "again": Reply(0, "no answer")}).outcome is FAIL


def streamed(first: float, between: float, tokens: int = 8) -> Reply:
    times = first + between * np.arange(tokens)
    return Reply(200, token_seconds=times, first_token_seconds=float(times[0]), completion_tokens=tokens)


def test_the_time_between_tokens_counts_tokens_and_not_chunks() -> None:
    chunks = Reply(200, token_seconds=np.array([1.0, 2.0, 3.0]), first_token_seconds=1.0, completion_tokens=5)
    assert chunks.inter_token_seconds == pytest.approx(0.5)
    assert Reply(200, token_seconds=np.array([1.0])).inter_token_seconds is None


def sessions(first: list[float], between: list[float]) -> list[dict[str, Any]]:
    found: dict[str, Any] | None = None
    for one, other in zip(first, between, strict=True):
        found = record([streamed(one, other)] * REQUESTS, found)
    return found["sessions"] if found else []


@pytest.mark.parametrize(("device", "few"), [("cpu", 3.0), ("remote", 3.0), ("cuda", 1.5)])
def test_latency_with_few_sessions(device: str, few: float) -> None:
    recorded = sessions([0.1, 0.1], [0.01, 0.01])

    def outcome(first: float, between: float, count: int = REQUESTS) -> Outcome:
        return check_latency(replies=[streamed(first, between)] * count, sessions=recorded, device=device).outcome

    assert outcome(0.1, 0.01) is PASS
    assert outcome(0.001, 0.0001) is PASS
    assert outcome(0.1 * few * 0.98, 0.01 * few * 0.98) is PASS
    assert outcome(0.1 * few * 1.02, 0.01) is FAIL
    assert outcome(0.1, 0.01 * few * 1.02) is FAIL
    assert outcome(0.1, 0.01, count=REQUESTS - 1) is FAIL


def test_latency_with_enough_sessions_is_judged_by_their_spread() -> None:
    quiet, loud = [0.1] * 5, [0.05, 0.2, 0.1, 0.15, 0.08]
    late = [streamed(0.13, 0.01)] * REQUESTS
    assert check_latency(replies=late, sessions=sessions(quiet, [0.01] * 5), device="cuda").outcome is FAIL
    assert check_latency(replies=late, sessions=sessions(quiet, [0.01] * 5), device="remote").outcome is PASS
    assert check_latency(replies=late, sessions=sessions(loud, [0.01] * 5), device="cuda").outcome is PASS


def test_latency_needs_a_record_and_whole_replies() -> None:
    good = [streamed(0.1, 0.01)] * REQUESTS
    assert check_latency(replies=good, sessions=[], device="cpu").outcome is INCONCLUSIVE
    broken = [*good, Reply(500, "broken")]
    assert check_latency(replies=broken, sessions=sessions([0.1], [0.01]), device="cpu").outcome is FAIL
    assert check_latency(replies=[], sessions=[], device="cpu").outcome is FAIL
    with pytest.raises(ValueError, match="nothing is recorded"):
        record([Reply(200)], None)
    kept = {"sessions": [{"first_token_seconds": 1.0, "inter_token_seconds": 1.0, "requests": 20}] * 60}
    assert len(record(good, kept)["sessions"]) == 40
