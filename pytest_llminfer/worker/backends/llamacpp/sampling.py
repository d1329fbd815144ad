"""llama.cpp's own samplers, and what is kept of the logits of each step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SEEDS = (1 << 32) - 1
"""The largest 32-bit seed means "take a random one" to llama.cpp."""
_STRIDE = 1_000_003


class Sampler:
    """One sequence's chain: repetition penalty, temperature, top-k, top-p, then a draw; the largest logit at temperature 0.

    number: of the prompt, so that equal prompts are drawn differently. remembered: how many tokens the penalty looks back.
    """

    def __init__(
        self, library: Any, sampling: Mapping[str, Any], prompt: Sequence[int], *, number: int, vocabulary: int, remembered: int
    ) -> None:
        self._library = library
        self._chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
        links = []
        if sampling["repetition_penalty"] != 1:
            links.append(_penalties(library, float(sampling["repetition_penalty"]), vocabulary, remembered))
        if sampling["temperature"] == 0:
            links.append(library.llama_sampler_init_greedy())
        else:
            links.append(library.llama_sampler_init_temp(float(sampling["temperature"])))
            if sampling["top_k"] > 0:
                links.append(library.llama_sampler_init_top_k(int(sampling["top_k"])))
            if sampling["top_p"] < 1:
                links.append(library.llama_sampler_init_top_p(float(sampling["top_p"]), 1))
            links.append(library.llama_sampler_init_dist((sampling["seed"] * _STRIDE + number) % _SEEDS))
        for link in links:
            library.llama_sampler_chain_add(self._chain, link)
        for token in prompt if sampling["repetition_penalty"] != 1 else ():
            library.llama_sampler_accept(self._chain, token)

    def choose(self, context: Any, row: int) -> int:
        """The next token after the batch's row ``row``; the chain remembers it."""
        return int(self._library.llama_sampler_sample(self._chain, context, row))

    def close(self) -> None:
        """Free the chain."""
        self._library.llama_sampler_free(self._chain)


def _penalties(library: Any, repetition: float, vocabulary: int, remembered: int) -> Any:
    """The sampler of the repetition penalty, which newer versions want to know the vocabulary for."""
    create = library.llama_sampler_init_penalties
    sizes = {4: (remembered,), 5: (vocabulary, remembered)}.get(len(create.argtypes))
    if sizes is None:
        raise UnsupportedError(
            f"this llama-cpp-python wants {len(create.argtypes)} values for a repetition penalty", "use another version"
        )
    return create(*sizes, repetition, 0.0, 0.0)


class TopTokens:
    """The k most likely tokens of every step of one sequence, from the raw logits: before temperature, penalties and filters."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._ids: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []
        self._largest: list[float] = []

    def add(self, logits: np.ndarray) -> None:
        """One step: ``logits`` (vocabulary,)."""
        if not self._top:
            return
        count = min(self._top, len(logits))
        likely = np.argpartition(-logits, count - 1)[:count] if count < len(logits) else np.arange(len(logits))
        likely = likely[np.lexsort((likely, -logits[likely]))]
        self._ids.append(likely.astype(np.int32))
        self._logprobs.append(log_softmax(logits, likely).astype(np.float32))
        self._largest.append(float(np.abs(logits).max()))

    def fields(self) -> dict[str, np.ndarray]:
        """The fields of ``Generation``; empty if nothing was asked for."""
        if not self._top:
            return {}
        return {
            "top_ids": np.stack(self._ids),
            "top_logprobs": np.stack(self._logprobs),
            "max_logit": np.array(self._largest, np.float32),
        }


def log_softmax(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Log-probabilities of ``ids`` under ``logits`` (vocabulary,), in float64."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    found: np.ndarray = wide[ids] - largest - np.log(np.exp(wide - largest).sum())
    return found
