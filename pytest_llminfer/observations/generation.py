"""What an engine generates, and what it predicts for given tokens."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations.message import FromMessage

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Sampling(FromMessage):
    """How tokens are chosen. Every field is always sent: engines differ in the defaults they read from a model.

    ``temperature`` 0 is greedy; ``top_k`` -1 keeps all tokens; ``stop_token_ids`` come on top of the model's end tokens,
    which ``ignore_eos`` switches off (for fixed output lengths).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a message, and for a baseline's fingerprint."""
        return {
            entry.name: list(value) if isinstance(value := getattr(self, entry.name), tuple) else value for entry in fields(self)
        }


@dataclass(frozen=True, slots=True)
class Generation(FromMessage):
    """One prompt's answer. T is the number of generated tokens, the end token included where one was produced.

    finish_reason: ``stop`` (an end token) or ``length`` (the limit).
    top_ids (T, k) int32 and top_logprobs (T, k) float32: the k most likely tokens of each step, nats, most likely first;
    None unless asked for. max_logit (T,) float32: the largest absolute logit of each step, which sets the size of a rounding step.
    cached_tokens: prompt tokens that came from a prefix cache; None where the engine does not say.
    """

    token_ids: tuple[int, ...]
    finish_reason: str
    text: str | None = None
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    max_logit: np.ndarray | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Scores(FromMessage):
    """What an engine makes of the last T tokens of a given sequence, each predicted from all before it (teacher forcing).

    logprobs (T,) float32: of the given tokens, nats. top_ids (T, k) int32 and top_logprobs (T, k) float32: the k most likely
    tokens of each position, most likely first.
    """

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
