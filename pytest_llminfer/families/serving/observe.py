"""Exchanges with a server as tests of serving use them: what is asked, and what came back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.families.serving.latency import REQUESTS, record
from pytest_llminfer.observations.serving import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.engines.engine import Engine

OK, UNAUTHORIZED = 200, 401
TOP = 5
PROMPT_TOKENS, NEW_TOKENS = 64, 16
"""Of a request whose latency is measured."""


def timed_replies(engine: Engine) -> list[Reply]:
    """Answers to single requests, streamed one after another; the first, which warms the server up, is left out."""
    server = Exchange(engine)
    prompts = server.fresh_prompts(REQUESTS + 1, PROMPT_TOKENS)
    return server.complete(prompts, max_tokens=NEW_TOKENS, stream=True, ignore_eos=True, logprobs=0)[1:]


def observe(engine: Engine, previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """This session's latencies, appended to those that are recorded."""
    return record(engine.once(timed_replies), previous)


class Exchange:
    """Asks one engine's server. Every request is greedy."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def conditions(self) -> dict[str, Any]:
        """What else must be equal for two latencies to be compared: the server, on a CPU its threads."""
        from pytest_llminfer.engines.launchers.local import default_threads

        info = self._engine.info
        remote = {"server": info.device_name} if info.device == "remote" else {}
        return remote | ({"threads": default_threads()} if info.device == "cpu" else {})

    def fresh_prompts(self, count: int, length: int) -> list[list[int]]:
        """Distinct prompts of about ``length`` drawn tokens, which no prefix cache knows; the same on every machine.

        With a tokenizer they are as it would write them, because some servers take text only.
        """
        model = self._engine.model
        drawn = model.sample_prompts(count, length)
        return [model.encode(model.decode(ids)) for ids in drawn] if model.has_tokenizer else drawn

    def models(self, *, key: str = "right") -> Reply:
        """The list of models. key: ``right``, ``wrong`` or ``none``."""
        return self._ask([{"endpoint": "models", "key": key}])[0]

    def chat(self, texts: Sequence[str], *, max_tokens: int, stream: bool = False) -> list[Reply]:
        """Each text as the one message of a conversation, one after another."""
        bodies = [{"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens} for text in texts]
        return self._ask([{"endpoint": "chat", "body": body, "stream": stream, "logprobs": TOP} for body in bodies])

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        stream: bool = False,
        key: str = "right",
        concurrency: int = 1,
        logprobs: int = TOP,
        ignore_eos: bool = False,
    ) -> list[Reply]:
        """Continuations of prompts of token ids, ``concurrency`` requests at a time."""
        request = {"endpoint": "completions", "stream": stream, "key": key, "logprobs": logprobs}
        bodies = [{"prompt": list(prompt), "max_tokens": max_tokens, "ignore_eos": ignore_eos} for prompt in prompts]
        return self._ask([{**request, "body": body} for body in bodies], concurrency=concurrency)

    def _ask(self, requests: Sequence[Mapping[str, Any]], *, concurrency: int = 1) -> list[Reply]:
        return [Reply.from_message(answer) for answer in self._engine.talk(requests, concurrency=concurrency)]
