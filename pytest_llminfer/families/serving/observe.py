"""Exchanges with a server as tests of serving use them: what is asked, and what came back."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from pytest_llminfer.observations.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from pytest_llminfer.engines.engine import Engine

OK, UNAUTHORIZED = 200, 401
TOP = 5


@dataclass(frozen=True, slots=True)
class Reply:
    """One exchange over HTTP, timed at this end.

    status: 0 where nothing came back; error: why. models: the names in a list of models. finish_reason: in the server's words.
    token_ids, top_ids (T, k), top_logprobs (T, k): None where the server gives none. chunks: events of a stream.
    completion_tokens: by the server's count. token_seconds: float64, when each chunk with text or tokens came, since the
    request was sent; first_token_seconds: the first of them. usage: as the server wrote it.
    """

    status: int
    error: str = ""
    models: tuple[str, ...] = ()
    text: str = ""
    finish_reason: str | None = None
    token_ids: tuple[int, ...] | None = None
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    chunks: int = 0
    completion_tokens: int | None = None
    first_token_seconds: float | None = None
    token_seconds: np.ndarray | None = None
    seconds: float = 0.0
    usage: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Self:
        """Build from a worker's message; fields that this version does not know are left out."""
        names = {entry.name for entry in fields(cls)}
        known = {name: value for name, value in message.items() if name in names}
        for name in ("models", "token_ids"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**known)

    @property
    def generation(self) -> Generation:
        """As an engine's answer; without token ids it has none."""
        return Generation(self.token_ids or (), self.finish_reason or "", self.text, self.top_ids, self.top_logprobs)

    @property
    def inter_token_seconds(self) -> float | None:
        """The mean time from one token to the next; None where fewer than two came apart."""
        if self.token_seconds is None or len(self.token_seconds) < 2:  # noqa: PLR2004 - an interval has two ends
            return None
        first, last = float(self.token_seconds[0]), float(self.token_seconds[-1])
        return (last - first) / max((self.completion_tokens or len(self.token_seconds)) - 1, 1)


class Exchange:
    """Asks one engine's server. Every request is greedy."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def conditions(self) -> dict[str, Any]:
        """What else must be equal for two latencies to be compared: the server, its arguments, on a CPU its threads."""
        from pytest_llminfer.engines.launchers.local import default_threads

        info = self._engine.info
        given = {"engine_args": dict(self._engine.engine_args)} if self._engine.engine_args else {}
        remote = {"server": info.device_name} if info.device == "remote" else {}
        return given | remote | ({"threads": default_threads()} if info.device == "cpu" else {})

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
