"""What the tests of the checks of KV caches share: comparisons of two ways through a cache, built here, and sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_llminfer.families.kv_equivalence.check import Compared, check_cache_paths
from pytest_llminfer.families.kv_equivalence.diagnosis import Kind
from pytest_llminfer.models.cut import CacheSizes
from pytest_llminfer.observations.cache_paths import CachedTensors, CachePathComparison, CachePathComparisons
from pytest_llminfer.verdict import Outcome, Verdict
from pytest_llminfer.worker.protocol.cache_paths import CachePath

LAYERS, HEADS, TOKENS, DIM = 3, 4, 48, 32
WINDOW = 20
NOISE = 4e-7
FULL = CacheSizes(HEADS, DIM, (0,) * LAYERS)
SLIDING = CacheSizes(HEADS, DIM, (WINDOW, 0, WINDOW))
DECODE = CachePath(chunks=(16,) + (1,) * (TOKENS - 16))


class Bug:
    """A comparison of one sequence that agrees, until something is written into it."""

    def __init__(self) -> None:
        self.keys, self.values = (np.full((LAYERS, HEADS, TOKENS), NOISE) for _ in range(2))
        self.kl = np.full(TOKENS, 1e-12)
        self.top1 = np.ones(TOKENS, bool)
        self.heads = np.broadcast_to(np.arange(HEADS)[:, None], (LAYERS, HEADS, TOKENS)).astype(np.int32)
        self.positions = np.broadcast_to(np.arange(TOKENS), (LAYERS, TOKENS)).astype(np.int32)
        self.lengths = (TOKENS,) * LAYERS
        self.dtype = "fp32"

    def from_layer(self, layer: Any, start: int = 0, end: int = TOKENS, size: float = 1.0) -> Bug:
        """Keys and values off in this layer and all above it, as everything is that came of something wrong."""
        for errors in (self.keys, self.values):
            errors[layer:, :, start:end] = size
        self.kl[start:] = 0.1
        return self

    def one(self) -> CachePathComparison:
        ulps = {
            f"{name}_ulps": np.where(errors[0] > 1e-5, 50.0, 0.0) for name, errors in (("key", self.keys), ("value", self.values))
        }
        return CachePathComparison(
            kl=self.kl,
            top1=self.top1,
            key_error=self.keys,
            value_error=self.values,
            dtype=self.dtype,
            lengths=self.lengths,
            nearest_head=self.heads,
            nearest_position=self.positions,
            **ulps,
        )

    def compared(self, cache_path: CachePath = DECODE, cache: CachedTensors | None = None, repeated: Bug | None = None) -> Compared:
        again = CachePathComparisons((repeated.one(),), None) if repeated else None
        return Compared(cache_path, CachePathComparisons((self.one(),), cache), again)


def verdict(bug: Bug, cache_path: CachePath = DECODE, sizes: CacheSizes = FULL, repeated: Bug | None = None) -> Verdict:
    return check_cache_paths(compared=[bug.compared(cache_path, repeated=repeated)], sizes=sizes, claim="as prefill")


def assert_told(found: Verdict, kind: Kind, *words: Any) -> None:
    assert found.outcome is Outcome.FAIL
    assert found.key == kind
    assert found.details[0].startswith(f"{kind}: "), found
    for word in words:
        assert word in found.details[0], found
