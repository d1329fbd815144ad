"""What two ways through a model's KV cache gave, which must be the same distributions. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations.message import FromMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


@dataclass(frozen=True, slots=True)
class CachePathComparison(FromMessage):
    """One sequence of T tokens by two cache paths, reduced to numbers per position; L layers, H KV heads.

    Attributes:
        kl: (T,) float64, KL(reference || candidate) over the whole vocabulary at each position, in nats.
        top1: (T,) bool, whether both sides have the same most likely token.
        key_error: (L, H, T) float64, norm of the difference of a position's keys over the norm of the reference's; NaN where a
            cache path keeps no such position (a window, no cache).
        value_error: (L, H, T) float64, the same of the values.
        key_ulps: (H, T) float64, largest difference of the first layer's keys in units in the last place of the storage dtype, 0
            where bit-equal; the unit is that of the key's largest value. NaN as above.
        value_ulps: (H, T) float64, the same of the first layer's values.
        dtype: What the cache stores, in the words of a cell, or ``int2`` and ``int4``; empty without a cache.
        lengths: (L,) tokens of the sequence that the candidate's cache holds at the end; empty without a cache.
        nearest_head: (L, H, T) int32, head of the reference whose key at the same position is nearest to the candidate's; another
            head points to swapped heads. -1 where a cache path keeps no such position; None from a worker that does not report it.
        nearest_position: (L, T) int32, position of the reference whose values are nearest to the candidate's. Another position
            points to a wrong slot or block; its own with a large error points to a wrong token or projection. -1 and None as above.
    """

    kl: np.ndarray
    top1: np.ndarray
    key_error: np.ndarray
    value_error: np.ndarray
    key_ulps: np.ndarray
    value_ulps: np.ndarray
    dtype: str
    lengths: tuple[int, ...]
    nearest_head: np.ndarray | None = None
    nearest_position: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class CachedTensors(FromMessage):
    """What a cache holds after a sequence, layer by layer. Shapes are (batch, kv_heads, length, head_dim).

    Attributes:
        key_shapes: Per layer the shape of its keys; of a quantized layer that of everything read back from it.
        value_shapes: Per layer the shape of its values, likewise.
        dtypes: Per layer what it stores, in the words of a cell, or ``int2`` and ``int4``.
        stored_bytes: Per layer the bytes of keys and values together, as they are stored, scales included.
        sliding: Per layer its window in tokens, 0 where it keeps everything; a static layer that is shorter than its window has its
            own length here.
        scales: Per layer the scales of keys and values where a whole tensor has one (``fp8``); an empty tuple for other layers.
        largest: Per layer the largest magnitude of its keys and of its values; with a measured scale, 448 times that scale.
        residual: Per layer the tokens that a quantized cache has not packed yet; 0 for other caches.
    """

    key_shapes: tuple[tuple[int, ...], ...]
    value_shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    stored_bytes: tuple[int, ...]
    sliding: tuple[int, ...]
    scales: tuple[tuple[float, ...], ...] = ()
    largest: tuple[tuple[float, ...], ...] = ()
    residual: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CachePathComparisons:
    """Two cache paths over several sequences.

    Attributes:
        sequences: One comparison per sequence, in the order of the request.
        cache: What the candidate's cache held after the last sequence; None for a cache path without one.
    """

    sequences: tuple[CachePathComparison, ...]
    cache: CachedTensors | None

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> CachePathComparisons:
        """Build from a worker's message."""
        cache = message.get("cache")
        return cls(
            sequences=tuple(CachePathComparison.from_message(entry) for entry in message["sequences"]),
            cache=CachedTensors.from_message(cache) if cache else None,
        )
