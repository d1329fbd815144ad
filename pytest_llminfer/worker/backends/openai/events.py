"""A stream of server-sent events, read as its standard says (https://html.spec.whatwg.org/multipage/server-sent-events.html).

Every field but ``data`` is legal and says nothing here. Where a server ends events by one line break alone, each line is one.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import openai

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

DONE = "[DONE]"
_BREAK = re.compile(r"\r\n|\n|\r")
_DRAIN_SECONDS = 1.0
_SHOWN = 120


class Lines:
    """Lines of a stream that arrives in pieces, which may end between any two bytes; without a byte order mark."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        self._rest = ""

    def feed(self, piece: bytes, *, final: bool = False) -> list[str]:
        """The lines that are whole now."""
        text = self._rest + self._decode(piece, final)
        # A carriage return may be the first half of a line break.
        held = "\r" if text.endswith("\r") and not final else ""
        *lines, self._rest = _BREAK.split(text.removesuffix(held) if held else text)
        self._rest += held
        if final and self._rest:
            lines.append(self._rest)
            self._rest = ""
        return lines


class Events:
    """The ``data`` of each event, from lines."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> list[str]:
        """The data lines of the event that this line ends; empty where it ends none, or one without data."""
        if not line:
            data, self._data = self._data, []
            return data
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
        return []

    def end(self) -> list[str]:
        """What the stream ended in the middle of: servers leave the last blank line out."""
        return self.feed("")


def messages(data: list[str]) -> Iterator[Any]:
    """The JSON of one event; of several where each of its lines is one.

    Raises:
        ValueError: a line is neither JSON nor the end.
    """
    if not data:
        return
    with contextlib.suppress(ValueError):
        yield json.loads("\n".join(data))
        return
    for line in data:
        if line.startswith(DONE):
            yield DONE
            return
        try:
            yield json.loads(line)
        except ValueError:
            raise ValueError(f"the stream has an event that is no JSON: {line[:_SHOWN]!r}") from None


class EventStream(openai.AsyncStream[object]):
    """The messages of a streamed reply, in place of the library's reading, which takes an event without data for broken JSON."""

    async def __stream__(self) -> AsyncIterator[Any]:
        """Raises ``openai.APIError`` for an event that is an error, ``ValueError`` for one that is no JSON."""
        pieces = self.response.aiter_bytes()
        async for data in _events(pieces):
            for message in messages(data):
                if message == DONE:
                    await _drain(pieces)
                    return
                yield self._sound(message)

    def _sound(self, message: Any) -> Any:
        if isinstance(message, dict) and (error := message.get("error")):
            said = error.get("message") if isinstance(error, dict) else error
            raise openai.APIError(str(said or error), request=self.response.request, body=error)
        return message


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[str]]:
    lines, events = Lines(), Events()
    async for piece in pieces:
        for line in lines.feed(piece):
            yield events.feed(line)
    for line in lines.feed(b"", final=True):
        yield events.feed(line)
    yield events.end()


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    """Read what follows the end, so that the connection can be used again."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in pieces:
                pass
