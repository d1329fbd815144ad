"""A frozen decode step of NumPy, for engines whose process has no torch. Any change of it needs a new ``VERSION``."""

from __future__ import annotations

import numpy as np

from pytest_llminfer.worker.backends.host import mean_seconds

VERSION = "numpy-1"
_BATCH, _CONTEXT, _HEADS, _WIDTH, _LAYERS, _VOCABULARY = 8, 64, 4, 256, 2, 2048


class ReferenceStep:
    """The weights and the cache of the step, made anew for each measurement and then forgotten."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return generator.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5)

        self._embedding = normal(_VOCABULARY, _WIDTH)
        self._layers = [
            (normal(3 * _WIDTH, _WIDTH), normal(_WIDTH, _WIDTH), normal(4 * _WIDTH, _WIDTH), normal(_WIDTH, 4 * _WIDTH))
            for _ in range(_LAYERS)
        ]
        self._cache = [normal(2, _BATCH, _HEADS, _CONTEXT, _WIDTH // _HEADS) for _ in range(_LAYERS)]
        self._tokens = np.arange(_BATCH)

    def __call__(self) -> None:
        """One step: all layers, and the likeliest tokens."""
        hidden = self._embedding[self._tokens]
        for (qkv, out, up, down), cache in zip(self._layers, self._cache, strict=True):
            query, key, value = ((hidden @ qkv.T).reshape(_BATCH, 3, _HEADS, 1, -1)).transpose(1, 0, 2, 3, 4)
            keys, values = (np.concatenate([old[:, :, 1:], new], axis=2) for old, new in zip(cache, (key, value), strict=True))
            scores = query @ keys.transpose(0, 1, 3, 2)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            attended = (weights / weights.sum(axis=-1, keepdims=True)) @ values
            hidden = _normalised(hidden + attended.reshape(_BATCH, _WIDTH) @ out.T)
            hidden = _normalised(hidden + np.maximum(hidden @ up.T, 0) @ down.T)
        self._tokens = (hidden @ self._embedding.T).argmax(axis=-1)


def _normalised(hidden: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = hidden / np.sqrt((hidden * hidden).mean(axis=-1, keepdims=True) + np.float32(1e-6))
    return scaled


def measure() -> dict[str, float | str]:
    """The fields of ``ReferenceStep``."""
    return {"seconds": mean_seconds(ReferenceStep()), "version": VERSION}
