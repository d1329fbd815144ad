"""From logits to the next tokens, and what is kept of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.worker.backends.simulated.llama import log_softmax

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Sampler:
    """Chooses tokens for the prompts of one request; a prompt's random numbers depend on the seed and its number alone."""

    def __init__(self, sampling: Mapping[str, Any], prompts: Sequence[Sequence[int]]) -> None:
        self._sampling = sampling
        self._seen = [list(prompt) for prompt in prompts]
        self._generators = [np.random.default_rng([sampling["seed"], number]) for number in range(len(prompts))]

    def choose(self, logits: np.ndarray, numbers: Sequence[int]) -> list[int]:
        """The next token of each row of ``logits`` (rows, vocabulary), which belong to the prompts ``numbers``."""
        if self._sampling["temperature"] == 0 and self._sampling["repetition_penalty"] == 1:
            return [int(token) for token in logits.argmax(axis=-1)]
        tokens = [self._choose_one(row.astype(np.float64), number) for row, number in zip(logits, numbers, strict=True)]
        for number, token in zip(numbers, tokens, strict=True):
            self._seen[number].append(token)
        return tokens

    def _choose_one(self, logits: np.ndarray, number: int) -> int:
        seen = np.unique(self._seen[number])
        penalty = self._sampling["repetition_penalty"]
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        if self._sampling["temperature"] == 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")
        if self._sampling["top_k"] > 0:
            order = order[: self._sampling["top_k"]]
        probabilities = np.exp(log_softmax(logits[order] / self._sampling["temperature"]))
        # The smallest set whose probability reaches top_p: a token stays while those before it have not reached it.
        kept = np.cumsum(probabilities) - probabilities < self._sampling["top_p"]
        probabilities = probabilities[kept] / probabilities[kept].sum()
        return int(self._generators[number].choice(order[kept], p=probabilities))


class TopTokens:
    """The most likely tokens of every step, per prompt, from the raw logits."""

    def __init__(self, top: int, prompts: int) -> None:
        self._top = top
        self._steps: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = [[] for _ in range(prompts)]

    def add(self, logits: np.ndarray, numbers: Sequence[int]) -> None:
        """One step of the prompts ``numbers``: ``logits`` (rows, vocabulary)."""
        if not self._top:
            return
        ids = np.argsort(-logits, axis=-1, kind="stable")[:, : self._top]
        logprobs = np.take_along_axis(log_softmax(logits), ids, axis=-1)
        largest = np.abs(logits).max(axis=-1)
        for row, number in enumerate(numbers):
            self._steps[number].append((ids[row], logprobs[row], largest[row]))

    def fields(self, number: int) -> dict[str, np.ndarray]:
        """The fields of ``Generation`` for one prompt; empty if nothing was asked for."""
        if not self._top:
            return {}
        ids, logprobs, largest = zip(*self._steps[number], strict=True)
        return {
            "top_ids": np.stack(ids).astype(np.int32),
            "top_logprobs": np.stack(logprobs).astype(np.float32),
            "max_logit": np.array(largest, np.float32),
        }
