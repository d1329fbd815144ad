"""What came back from a server, one exchange at a time."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from pytest_llminfer.observations.generation import Generation

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


@dataclass(frozen=True, slots=True)
class Reply:
    """One exchange over HTTP, timed by the client.

    Attributes:
        status: HTTP status; 0 where nothing came back.
        error: Why it failed; empty where it did not.
        models: Names in a list of models; empty for other requests.
        text: The answer as text, all chunks joined.
        finish_reason: In the server's words; None where it gave none.
        token_ids: (T,) the generated tokens; None where the server gives none.
        top_ids: (T, k) int32, the k most likely tokens of each step, most likely first; None where the server gives none.
        top_logprobs: (T, k) float32, their log-probabilities in nats; None where the server gives none.
        chunks: Events of a stream; 1 for a whole answer, 0 for none.
        completion_tokens: Generated tokens by the server's count, otherwise by its token ids; None without either.
        first_token_seconds: From sending the request to the first chunk with text or tokens; None where none came or nothing was
            streamed.
        token_seconds: (chunks,) float64, from sending the request to each chunk with text or tokens; empty or None where nothing
            was streamed.
        seconds: From sending the request to the end of the exchange.
        usage: The ``usage`` object as the server wrote it last; empty without one.
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
        """The reply as an engine's answer; its token ids are empty where the server gave none."""
        return Generation(self.token_ids or (), self.finish_reason or "", self.text, self.top_ids, self.top_logprobs)

    @property
    def inter_token_seconds(self) -> float | None:
        """Mean seconds from one token to the next; None where fewer than two chunks with text or tokens came."""
        if self.token_seconds is None or len(self.token_seconds) < 2:  # noqa: PLR2004 - an interval has two ends
            return None
        first, last = float(self.token_seconds[0]), float(self.token_seconds[-1])
        return (last - first) / max((self.completion_tokens or len(self.token_seconds)) - 1, 1)
