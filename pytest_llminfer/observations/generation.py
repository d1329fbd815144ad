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

    Attributes:
        max_tokens: Most tokens to generate, the end token included; at least 1.
        temperature: Divides the logits; 0 is greedy.
        top_p: Cumulative probability to which tokens are kept, above 0 and at most 1; 1 keeps all.
        top_k: How many of the most likely tokens are kept; -1 keeps all.
        repetition_penalty: Factor against tokens already present, above 0; 1 is none.
        seed: Seed of the draw; of no effect where decoding is greedy.
        stop_token_ids: Tokens that end an answer beside the model's own end tokens; empty for none.
        ignore_eos: Whether the model's end tokens do not end an answer, for fixed output lengths.
        stop: Strings before which an answer ends; empty for none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a message, and for a baseline's fingerprint, which has no ``stop`` where there is none."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "stop" or self.stop}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Generation(FromMessage):
    """The answer to one prompt: T generated tokens, the end token included where one was produced.

    Attributes:
        token_ids: (T,) the generated tokens; empty from a server that returns only text, where no tokenizer is at hand.
        finish_reason: ``stop`` (an end token) or ``length`` (the limit).
        text: The answer as text; None where the engine returns only tokens.
        top_ids: (T, k) int32, the k most likely tokens of each step, most likely first; None unless requested.
        top_logprobs: (T, k) float32, their log-probabilities in nats; None unless requested.
        max_logit: (T,) float32, largest absolute logit of each step, which sets the size of a rounding step; None where the engine
            does not say.
        cached_tokens: Prompt tokens that came from a prefix cache; None where the engine does not say.
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
    """What an engine predicts for the last T tokens of a given sequence, each from all tokens before it (teacher forcing).

    Attributes:
        logprobs: (T,) float32, log-probabilities of the given tokens, in nats.
        top_ids: (T, k) int32, the k most likely tokens of each position, most likely first.
        top_logprobs: (T, k) float32, their log-probabilities in nats.
    """

    logprobs: np.ndarray
    top_ids: np.ndarray
    top_logprobs: np.ndarray
