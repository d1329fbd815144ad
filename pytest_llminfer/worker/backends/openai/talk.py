"""Raw exchanges with a server, timed at this end: what tests of serving judge."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import openai

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.openai.answers import Answer
from pytest_llminfer.worker.backends.openai.arguments import closest
from pytest_llminfer.worker.backends.openai.discovery import PROBE_SAMPLING, Asking, Offer, Served
from pytest_llminfer.worker.backends.openai.transport import Failure, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ENDPOINTS = ("chat", "completions", "models")
FIELDS = {"endpoint": "models", "body": {}, "stream": False, "key": "right", "logprobs": 0}
KEYS = ("right", "wrong", "none")
OK = 200
_WRONG_KEY = "llminfer-wrong-key"
_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "ignore_eos", "stop_token_ids")


class Talk:
    """Exchanges with one server.

    A request is ``{"endpoint", "body", "stream", "key", "logprobs"}``. body: our sampling fields by their names (what is left
    out is greedy), and ``prompt`` (token ids or text) or ``messages``, and whatever else goes to the server as it stands.
    A reply is ``{"status", "error", "models", "text", "finish_reason", "token_ids", "top_ids", "top_logprobs", "chunks",
    "completion_tokens", "first_token_seconds", "token_seconds", "seconds", "usage"}``: status 0 where no reply came;
    token_seconds: float64, when each chunk with text or tokens came, since the request was sent; first_token_seconds: the
    first of them. Nothing is retried.
    """

    def __init__(self, transport: Transport, served: Served, offer: Offer, *, has_key: bool, prompt: Callable[[Any], Any]) -> None:
        self._transport, self._served, self._offer = transport, served, offer
        self._has_key, self._prompt = has_key, prompt

    def __call__(self, requests: Sequence[Mapping[str, Any]], *, concurrency: int, progress: Any) -> list[dict[str, Any]]:
        """The replies in order, ``concurrency`` requests at a time."""
        jobs = [partial(self._one, *self._read(request)) for request in requests]
        return list(
            self._transport.run(
                self._transport.all(jobs, concurrency=concurrency, done=lambda ended: progress("asking", ended, len(jobs)))
            )
        )

    def _read(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None, dict[str, Any]]:
        """Path, body (None: a GET) and what becomes of the exchange."""
        for name in request:
            if name not in FIELDS:
                raise BadInputError(f"a request has no {name!r}; valid: {', '.join(FIELDS)}.{closest(name, FIELDS)}")
        given = {**FIELDS, **request}
        for name, choices in (("endpoint", ENDPOINTS), ("key", KEYS)):
            if given[name] not in choices:
                raise BadInputError(f"unknown {name} {given[name]!r}; valid: {', '.join(choices)}")
        if given["key"] != "right" and not self._has_key:
            raise UnsupportedError(
                "this server was given no API key, so it cannot be asked whether it refuses a wrong one",
                "put its key into OPENAI_API_KEY",
            )
        options = {"max_retries": 0, **_headers(given["key"])}
        if given["endpoint"] == "models":
            return "/models", None, {"stream": False, "logprobs": 0, "options": options}
        body = dict(given["body"])
        asking = Asking(given["endpoint"], self._offer.prompts, self._served)
        prompt = body.pop("messages", None) if given["endpoint"] == "chat" else self._written(body.pop("prompt", ""))
        sampling = {**PROBE_SAMPLING, **{name: body.pop(name) for name in _SAMPLING if name in body}}
        top = given["logprobs"] if self._offer.gives_logprobs else 0
        chat_stream = given["stream"] and given["endpoint"] == "chat"
        extra = self._offer.extra if self._served.dialect.streams_chat_ids or not chat_stream else {}
        whole = {**asking.body(prompt, sampling, top, extra), **body}
        if given["stream"] and self._served.dialect.always:
            whole["stream_options"] = {"include_usage": True}
        return asking.path, whole, {"stream": given["stream"], "logprobs": top, "options": options}

    def _written(self, prompt: Any) -> Any:
        return prompt if isinstance(prompt, str) else self._prompt(prompt)

    async def _one(self, path: str, body: dict[str, Any] | None, how: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        if body is None:
            return _reply(await self._transport.fetch(path, **how["options"]), Answer(), [], 0, started, 0)
        answer, arrivals, chunks = Answer(), [], 0
        ended: Any = {}
        if not how["stream"]:
            ended = await self._transport.post(path, body, **how["options"])
            if not isinstance(ended, Failure):
                answer.add(ended)
                chunks = 1
        else:
            async for chunk in self._transport.stream(path, body, **how["options"]):
                if isinstance(chunk, Failure):
                    ended = chunk
                    break
                if answer.add(chunk):
                    arrivals.append(time.perf_counter() - started)
                chunks += 1
        return _reply(ended, answer, arrivals, chunks, started, how["logprobs"])


def _headers(key: str) -> dict[str, Any]:
    if key == "right":
        return {}
    return {"headers": {"Authorization": openai.Omit() if key == "none" else f"Bearer {_WRONG_KEY}"}}


def _reply(ended: Any, answer: Answer, arrivals: Sequence[float], chunks: int, started: float, logprobs: int) -> dict[str, Any]:
    failure = ended if isinstance(ended, Failure) else None
    models = [entry.get("id") for entry in ended["data"]] if isinstance(ended, dict) and "data" in ended else []
    return {
        "status": failure.status if failure else OK,
        "error": str(failure) if failure else "",
        "models": models,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "token_ids": answer.token_ids,
        **answer.top(logprobs),
        "chunks": chunks,
        "completion_tokens": answer.completion_tokens,
        "first_token_seconds": arrivals[0] if arrivals else None,
        "token_seconds": np.array(arrivals, np.float64),
        "seconds": time.perf_counter() - started,
        "usage": answer.usage,
    }
