"""Log-probabilities of given tokens by the NumPy model, and the report on its cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_llminfer.worker.backends.simulated.llama import log_softmax

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.worker.backends.simulated.faults import Faults
    from pytest_llminfer.worker.backends.simulated.kv_cache import KVCache
    from pytest_llminfer.worker.backends.simulated.ledger import Ledger
    from pytest_llminfer.worker.backends.simulated.llama import Llama


def by_prefill(model: Llama, sequence: Sequence[int]) -> np.ndarray:
    """Float32 (T-1,) in one pass."""
    model.cache_dtype = np.dtype(np.float32)
    hidden = model.forward(np.array([sequence[:-1]]), model.new_cache(1, len(sequence)))[0]
    return _picked(model.logits(hidden), sequence[1:])


def by_decode(model: Llama, sequence: Sequence[int], faults: Faults, ledger: Ledger) -> np.ndarray:
    """Float32 (T-1,) token by token through the cache; to a fault, the first half is the prompt."""
    model.cache_dtype = faults.cache_dtype()
    cache = model.new_cache(1, len(sequence))
    steps = []
    with ledger.hold(cache.nbytes):
        for place, token in enumerate(sequence[:-1]):
            decoding = place >= len(sequence) // 2
            if place == len(sequence) // 2:
                faults.after_prompt(cache)
            steps.append(_forward_one(model, token, cache, faults if decoding else None))
    return _picked(model.logits(np.concatenate(steps)), sequence[1:])


def _picked(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    scores: np.ndarray = log_softmax(logits)[np.arange(len(targets)), np.asarray(targets)].astype(np.float32)
    return scores


def _forward_one(model: Llama, token: int, cache: KVCache, faults: Faults | None) -> np.ndarray:
    hidden = model.forward(np.array([[token]]), cache, shift=faults.position_shift() if faults else 0)[:, -1]
    if faults:
        faults.after_step(cache)
    return hidden


def cache_report(model: Llama, prompt: Sequence[int], extend: int, faults: Faults, ledger: Ledger) -> dict[str, Any]:
    """The fields of ``CacheReport``. A dropped block is dropped after the snapshot, as one that is evicted while decoding."""
    model.cache_dtype = faults.cache_dtype()
    cache = model.new_cache(1, len(prompt) + extend)
    layers = range(model.shape.num_hidden_layers)
    with ledger.hold(cache.nbytes):
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
