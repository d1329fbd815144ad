"""Log-probabilities of given tokens by the NumPy model, and the report on its cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.worker.backends.simulated.llama import log_softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_llminfer.worker.backends.simulated.faults import Faults
    from pytest_llminfer.worker.backends.simulated.kv_cache import KVCache
    from pytest_llminfer.worker.backends.simulated.llama import Llama
    from pytest_llminfer.worker.backends.simulated.profile import Profile


def by_prefill(model: Llama, sequence: Sequence[int]) -> np.ndarray:
    """Float32 (T-1,) in one pass."""
    model.cache_dtype = np.dtype(np.float32)
    hidden = model.forward(np.array([sequence[:-1]]), model.new_cache(1, len(sequence)))[0]
    return _picked(model.logits(hidden), sequence[1:])


def by_decode(model: Llama, sequence: Sequence[int], faults: Faults, profile: Profile) -> np.ndarray:
    """Float32 (T-1,) token by token through the cache; to a fault, the first half is the prompt."""
    model.cache_dtype = faults.cache_dtype()
    cache = model.new_cache(1, len(sequence))
    steps = []
    with profile.hold(cache.nbytes):
        for place, token in enumerate(sequence[:-1]):
            decoding = place >= len(sequence) // 2
            if place == len(sequence) // 2:
                faults.after_prompt(cache)
            steps.append(_forward_one(model, token, cache, faults if decoding else None))
    return _picked(model.logits(np.concatenate(steps)), sequence[1:])


def _picked(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    scores: np.ndarray = log_softmax(logits)[np.arange(len(targets)), np.asarray(targets)].astype(np.float32)
    return scores


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores the last tokens of sequences, with the most likely tokens of each position.

    Attributes:
        model: The NumPy model.
        faults: What goes wrong on purpose.
        profile: Counts the bytes of the caches.
        top: How many of the most likely tokens are kept per position.
        last: How many tokens of each sequence are scored.
    """

    model: Llama
    faults: Faults
    profile: Profile
    top: int
    last: int

    def by_batches(
        self, sequences: Sequence[Sequence[int]], batches: Sequence[Sequence[int]], progress: Callable[[str, int, int], None]
    ) -> list[dict[str, np.ndarray]]:
        """The fields of ``Scores`` of each sequence; ``batches``: which of them are computed together."""
        found: list[dict[str, np.ndarray]] = [{} for _ in sequences]
        done = 0
        for batch in batches:
            hidden = self._forward([sequences[number] for number in batch])
            for row, number in enumerate(batch):
                found[number] = _top(self.model.logits(hidden[row]), sequences[number][-self.last :], self.top)
            done += len(batch)
            progress("scoring", done, len(sequences))
        return found

    def _forward(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """Hidden states (rows, last, hidden): what comes before the last inputs fills the cache, over which these are computed."""
        self.model.cache_dtype = self.faults.cache_dtype()
        cache = self.model.new_cache(len(sequences), max(map(len, sequences)) - 1)
        before = np.array([len(sequence) - 1 - self.last for sequence in sequences])
        prompts = np.zeros((len(sequences), before.max()), np.int64)
        for row, sequence in enumerate(sequences):
            prompts[row, : before[row]] = sequence[: before[row]]
        with self.profile.hold(cache.nbytes):
            self.model.forward(prompts, cache, lengths=before)
            self.faults.after_prompt(cache)
            given = np.array([sequence[-self.last - 1 : -1] for sequence in sequences])
            return self.model.forward(given, cache, shift=self.faults.position_shift())


def _top(logits: np.ndarray, targets: Sequence[int], top: int) -> dict[str, np.ndarray]:
    logprobs = log_softmax(logits)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :top]
    return {
        "logprobs": logprobs[np.arange(len(targets)), np.asarray(targets)].astype(np.float32),
        "top_ids": ids.astype(np.int32),
        "top_logprobs": np.take_along_axis(logprobs, ids, axis=-1).astype(np.float32),
    }


def _forward_one(model: Llama, token: int, cache: KVCache, faults: Faults | None) -> np.ndarray:
    hidden = model.forward(np.array([[token]]), cache, shift=faults.position_shift() if faults else 0)[:, -1]
    if faults:
        faults.after_step(cache)
    return hidden


def cache_report(model: Llama, prompt: Sequence[int], extend: int, faults: Faults, profile: Profile) -> dict[str, Any]:
    """The fields of ``CacheReport``. A dropped block is dropped after the snapshot, as one that is evicted while decoding."""
    model.cache_dtype = faults.cache_dtype()
    cache = model.new_cache(1, len(prompt) + extend)
    layers = range(model.shape.num_hidden_layers)
    with profile.hold(cache.nbytes):
        hidden = model.forward(np.array([list(prompt)]), cache)[:, -1]
        before = [tuple(array.copy() for array in cache.in_use(layer)) for layer in layers]
        report = [cache.layer_report(layer) for layer in layers]
        faults.after_prompt(cache)
        for _ in range(extend):
            hidden = _forward_one(model, int(model.logits(hidden).argmax()), cache, faults)
        return {
            "prompt_tokens": len(prompt),
            "extended_tokens": extend,
            "layers": report,
            "extended_layers": [cache.layer_report(layer) for layer in layers],
            "prefix_differences": [
                [
                    float(np.abs(old - new[:, :, : len(prompt)]).max())
                    for old, new in zip(before[layer], cache.in_use(layer), strict=True)
                ]
                for layer in layers
            ],
        }
