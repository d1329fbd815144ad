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
