"""Requests to one server: bounded in number, retried with back-off, and kept apart from wrong answers when they fail."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import openai

from pytest_llminfer.errors import BadInputError, TransportError
from pytest_llminfer.worker.backends.openai.answers import oddity
from pytest_llminfer.worker.backends.openai.arguments import secrets_in
from pytest_llminfer.worker.backends.openai.events import EventStream
from pytest_llminfer.worker.backends.openai.keys import is_loopback, redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence

    from pytest_llminfer.worker.backends.openai.arguments import Arguments

NO_KEY = "none"
LONGEST_PAUSE = 60.0
"""Seconds between two attempts: what the library waits at the most where a server says Retry-After."""
MOST_FAILURES = 16
"""Failed requests after which the rest of a batch is not asked any more: the server is broken, and retries take time."""
_SHOWN = 400
_BODY_SHOWN = 200
_OK = 200


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
        kind: Class name of the error.
        status: HTTP status; 0 where no reply came.
        message: The server's or the library's words, without the key.
    """

    kind: str
    status: int
    message: str

    def __str__(self) -> str:
        status = f" {self.status}" if self.status and str(self.status) not in self.message else ""
        return f"{self.kind}{status}: {self.message}"


class Transport:
    """One server under one key. Everything runs in one event loop, so that connections can be kept between requests."""

    def __init__(self, address: str, key: str, arguments: Arguments) -> None:
        self.address, self.has_key = address.rstrip("/"), bool(key)
        self._arguments = arguments
        self._secrets = [secret for secret in (key, *secrets_in(arguments.extra_body)) if secret]
        self._loop = asyncio.new_event_loop()
        # At its finer levels the library writes whole requests into the log.
        logging.getLogger("openai").setLevel(logging.WARNING)
        # A proxy that the environment names is for other machines.
        local = is_loopback(urlsplit(address).hostname or "")
        # Its own types know OpenAI's fields only.
        self._client: Any = openai.AsyncOpenAI(
            base_url=address,
            api_key=key or NO_KEY,
            max_retries=arguments.max_retries,
            timeout=arguments.timeout,
            default_headers=arguments.extra_headers or None,
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not local),
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of ``work`` in the loop of this server."""
        return self._loop.run_until_complete(work)

    def get(self, path: str, **options: Any) -> Any:
        """What GET answers; ``Failure`` where it does not."""
        return self.run(self.fetch(path, **options))

    async def fetch(self, path: str, **options: Any) -> Any:
        """:meth:`get`, from within the loop."""
        return await self._guarded(lambda: self._client.get(path, cast_to=object, options=options), **options)

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> Any:
        """What POST answers; ``Failure`` where it does not, or not as the interface has it.

        Raises:
            BadInputError: the user's own fields hold another value for one that the request sets.
        """
        whole = self._whole(body)
        reply = await self._guarded(lambda: self._client.post(path, cast_to=object, body=whole, options=options), **options)
        return reply if isinstance(reply, Failure) else self._shaped(reply)

    async def stream(self, path: str, body: Mapping[str, Any], **options: Any) -> AsyncIterator[Any]:
        """The chunks of a streamed answer; a ``Failure`` ends them.

        Raises:
            BadInputError: as :meth:`post`.
        """
        whole = self._whole({**body, "stream": True})
        try:
            async with asyncio.timeout(self._seconds(**options)):
                chunks = await self._client.post(
                    path,
                    cast_to=object,
                    body=whole,
                    stream=True,
                    stream_cls=EventStream,
                    options=options,
                )
                async with chunks:
                    async for chunk in chunks:
                        shaped = self._shaped(self._without_secrets(chunk))
                        yield shaped
                        if isinstance(shaped, Failure):
                            return
        except Exception as error:  # noqa: BLE001 - as below
            yield self._failure(error, **options)

    async def all(
        self, jobs: Sequence[Callable[[], Awaitable[Any]]], *, concurrency: int, done: Callable[[int], None]
    ) -> list[Any]:
        """The result of every job, in order, ``concurrency`` of them at a time; ``done`` is called with how many have ended.

        After ``MOST_FAILURES`` failed ones the rest is left unasked: None.
        """
        results: list[Any] = [None] * len(jobs)
        waiting = iter(enumerate(jobs))
        ended = failed = 0

        async def work() -> None:
            nonlocal ended, failed
            for number, job in waiting:
                if failed >= MOST_FAILURES:
                    return
                results[number] = await job()
                ended += 1
                failed += isinstance(results[number], Failure)
                done(ended)

        await asyncio.gather(*(work() for _ in range(min(concurrency, len(jobs)))))
        return results

    def close(self) -> None:
        """Close the connections."""
        if not self._loop.is_closed():
            self.run(self._client.close())
            self._loop.close()

    def redact(self, text: str) -> str:
        """``text`` without the key, and without secrets among the user's own fields."""
        return redact(text, *self._secrets)

    def _whole(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """``body`` with the user's own fields; one that is null there is left out."""
        for name, value in self._arguments.extra_body.items():
            if value is not None and name in body and body[name] != value:
                raise BadInputError(
                    f"extra_body holds {name!r}: {value!r}, which a test sets to {body[name]!r}; leave it out, or give null to "
                    "send none"
                )
        return {name: value for name, value in {**body, **self._arguments.extra_body}.items() if value is not None}

    async def _guarded(self, ask: Callable[[], Awaitable[Any]], **options: Any) -> Any:
        try:
            # The library's own limit is on silence: a server that sends a byte at a time never meets it.
            async with asyncio.timeout(self._seconds(**options)):
                return self._without_secrets(await ask())
        except Exception as error:  # noqa: BLE001 - what the library raises is no one class, and each ends one request alone
            return self._failure(error, **options)

    def _seconds(self, **options: Any) -> float:
        """What a request may take in all: every attempt its time, and the pauses between them."""
        retries = options.get("max_retries", self._arguments.max_retries)
        return float(self._arguments.timeout * (retries + 1) + LONGEST_PAUSE * retries)

    def _without_secrets(self, reply: Any) -> Any:
        """A server may repeat the key anywhere, and what it says is shown and recorded."""
        if not self._secrets:
            return reply
        if isinstance(reply, str):
            return self.redact(reply)
        if isinstance(reply, list):
            return [self._without_secrets(each) for each in reply]
        if isinstance(reply, dict):
            return {self.redact(str(name)): self._without_secrets(value) for name, value in reply.items()}
        return reply

    def _shaped(self, reply: Any) -> Any:
        """``reply``, or a failure that shows the start of it where it is of no shape that an answer has."""
        if not (odd := oddity(reply)):
            return reply
        start = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
        return Failure("UnexpectedReply", _OK, self._shown(f"{odd}; the reply begins: {start[:_BODY_SHOWN]}"))

    def _failure(self, error: Exception, **options: Any) -> Failure:
        if isinstance(error, TimeoutError):
            return Failure("Timeout", 0, f"no whole answer within {self._seconds(**options):g} s")
        status = getattr(error, "status_code", 0)
        cause = error.__cause__
        text = str(error) or type(error).__name__
        body = getattr(error, "body", None)
        if status and isinstance(body, str) and body not in text:
            text = f"{text} - {body}"
        elif status and isinstance(body, dict) and " - " not in text:
            text = f"{text} - {body.get('detail') or body.get('error') or body}"
        elif isinstance(error, openai.APIConnectionError) and cause is not None and str(cause):
            text = f"{text} ({type(cause).__name__}: {cause})"
        return Failure(type(error).__name__, int(status or 0), self._shown(text))

    def _shown(self, text: str) -> str:
        """On one line, without the key."""
        return " ".join(self.redact(text).split())[:_SHOWN]


def refuse_failures(results: Sequence[Any], *, server: str, what: str) -> None:
    """Refuse a batch with failed requests: a request without an answer is not a wrong answer.

    Raises:
        TransportError: how many of the requests failed, and the first reason.
    """
    failures = [result for result in results if isinstance(result, Failure)]
    if not failures:
        return
    unasked = sum(result is None for result in results)
    rest = f" ({unasked} more were not asked)" if unasked else ""
    raise TransportError(f"{len(failures)} of {len(results)} requests to {server} failed while {what}{rest}; first: {failures[0]}")
