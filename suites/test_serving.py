"""Serving: the engine's own server lists its model, answers correctly in every mode, requires its key, and ends on SIGTERM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.families.serving.check import (
    check_answered,
    check_finish_reasons,
    check_key,
    check_model_list,
    check_same_replies,
    check_stop,
)
from pytest_llminfer.families.serving.latency import REQUESTS, check_latency, recorded_sessions
from pytest_llminfer.families.serving.observe import NEW_TOKENS, PROMPT_TOKENS, Exchange, observe, timed_replies

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.observations.serving import Reply
    from pytest_llminfer.plugin.judging import Judge

pytestmark = pytest.mark.llminfer_only(over_http=True, workers=1)
"""Of several servers, each is tested by the cell of one."""

PROMPTS, TOKENS, SHORT, FULL = 8, 32, 4, 512
QUESTIONS = ("What is 2 + 3?", "Name a colour.")


def test_the_served_model_is_listed(engine: Engine, server: Exchange, judge: Judge) -> None:
    """By the name under which it is asked."""
    judge(check_model_list(reply=server.models(), name=str(engine.settings()["resolved"]["model"])))


def test_chat_and_completion_answer(server: Exchange, prompts: list[list[int]], judge: Judge) -> None:
    """Both endpoints, with text or tokens that are not empty."""
    chat = server.chat(QUESTIONS, max_tokens=SHORT)
    judge(check_answered(replies={"chat": chat, "completion": server.complete(prompts[:2], max_tokens=SHORT)}))


def test_finish_reason_is_length_at_the_limit_and_stop_at_the_end(server: Exchange, prompts: list[list[int]], judge: Judge) -> None:
    """A limit of a few tokens cuts every answer; one of many lets it end."""
    short, full = (server.complete(prompts[:4], max_tokens=limit, concurrency=4, logprobs=0) for limit in (SHORT, FULL))
    judge(check_finish_reasons(short=short, full=full, short_limit=SHORT, full_limit=FULL))


def test_streaming_equals_not_streaming(
    engine: Engine, server: Exchange, prompts: list[list[int]], one_by_one: list[Reply], judge: Judge
) -> None:
    """Tokens, text and finish reason, of a completion and of a chat."""
    streamed = server.complete(prompts, max_tokens=TOKENS, stream=True)
    chats = {stream: server.chat(QUESTIONS, max_tokens=TOKENS, stream=stream) for stream in (True, False)}
    for what, candidate, reference in (("completion", streamed, one_by_one), ("chat", chats[True], chats[False])):
        claim = f"a streamed {what} is the one that is not streamed"
        judge(check_same_replies(candidate=candidate, reference=reference, dtype=engine.info.dtype, claim=claim))


def test_a_wrong_key_is_refused(server: Exchange, prompts: list[list[int]], judge: Judge) -> None:
    """And no key too; the right one works after that."""
    wrong, missing, right = (server.complete(prompts[:1], max_tokens=1, key=key)[0] for key in ("wrong", "none", "right"))
    judge(check_key(wrong=wrong, missing=missing, right=right))


def test_concurrent_requests_get_their_own_answers(
    engine: Engine, server: Exchange, prompts: list[list[int]], one_by_one: list[Reply], judge: Judge
) -> None:
    """All are answered, each as when it was alone, but for ties within rounding."""
    together = server.complete(prompts, max_tokens=TOKENS, concurrency=PROMPTS)
    claim = f"{PROMPTS} requests at once are answered as they are one after another"
    judge(check_same_replies(candidate=together, reference=one_by_one, dtype=engine.info.dtype, claim=claim))


def test_latency_is_as_recorded(engine: Engine, server: Exchange, baseline: Baseline, judge: Judge) -> None:
    """To the first token, and from token to token: one request at a time, each with a prompt of its own."""
    replies = engine.once(timed_replies)
    lengths = {"requests": REQUESTS, "prompt_tokens": PROMPT_TOKENS, "max_tokens": NEW_TOKENS, "concurrency": 1}
    sessions: Sequence[Mapping[str, Any]] = baseline.expected(
        "serving_latency",
        observe=observe,
        conditions=lengths | server.conditions,
        n=REQUESTS,
        per_hardware=True,
        per_parallelism=True,
        arguments="all",
        read=recorded_sessions,
    )
    judge(check_latency(replies=replies, sessions=sessions, device=engine.info.device))


@pytest.mark.llminfer_needs("serving:stop")
def test_the_server_stops_when_it_is_told_to(engine: Engine, server: Exchange, judge: Judge) -> None:
    """Within its time, with nothing left, and it starts again."""
    ended = engine.stop_server()
    judge(check_stop(**ended, again=server.models()))


@pytest.fixture(scope="session")
def server(engine: Engine) -> Exchange:
    """Raw exchanges with the server."""
    return Exchange(engine)


@pytest.fixture(scope="session")
def prompts(engine: Engine) -> list[list[int]]:
    """Chat prompts where the model has a tokenizer, drawn token ids otherwise."""
    return engine.model.prompts(PROMPTS)


@pytest.fixture(scope="session")
def one_by_one(server: Exchange, prompts: list[list[int]]) -> list[Reply]:
    """The answers to the prompts, asked one after another."""
    return server.complete(prompts, max_tokens=TOKENS)
