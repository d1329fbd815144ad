"""Ways through a model's KV cache that must all give the same distributions, and what two of them gave. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations import FromMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

CACHES = ("none", "dynamic", "static", "quantized")


@dataclass(frozen=True, slots=True)
class Route(FromMessage):
    """How given tokens are fed to a model.

    chunks: lengths of the successive forward passes over a sequence of T tokens, which sum to T: ``(T,)`` is prefill,
    ``(1,) * T`` is decoding, anything between is chunked prefill or a conversation of several turns; empty means ``(T,)``.
    cache: one of ``CACHES``; ``none`` computes every prefix anew; ``dynamic`` is what the configuration implies, layers of a
    sliding window included; ``quantized`` has ``cache_bits``.
    pads_left, pads_right: masked tokens put before and after every sequence. batch: rows that are computed together, other
    sequences of the request beside each (1: alone). crop: after its first ``crop`` tokens, ``crop_extra`` other tokens are fed
    and cropped away again; 0 for none. beams: rows that are copied out of one after its first chunk, reordered and of which
    the first is read; 1 for none. prefix: tokens whose cache is filled by another sequence that begins the same, and reused;
    0 for none.
    """

    chunks: tuple[int, ...] = ()
    cache: str = "dynamic"
    cache_bits: int = 4
    pads_left: int = 0
    pads_right: int = 0
    batch: int = 1
    crop: int = 0
    crop_extra: int = 0
    beams: int = 1
    prefix: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a message."""
        return {
            entry.name: list(value) if isinstance(value := getattr(self, entry.name), tuple) else value for entry in fields(self)
        }


@dataclass(frozen=True, slots=True)
class RouteComparison(FromMessage):
    """One sequence of T tokens by two routes. L layers, H KV heads.

    kl (T,) float64: KL(reference || candidate) over the whole vocabulary at each position, nats. top1 (T,) bool: whether the most
    likely token is the same. key_error, value_error (L, H, T) float64: the norm of the difference of a position's key (value) over
    the norm of the reference's, NaN where a route keeps no such position (a window, no cache). key_ulps, value_ulps (H, T)
    float64: of the first layer, the largest difference in units in the last place of the storage dtype, 0 where bit-equal.
    dtype: of the cache's tensors, in the words of a cell. lengths (L,): tokens that the candidate's cache holds of it at the end.
    """

    kl: np.ndarray
    top1: np.ndarray
    key_error: np.ndarray
    value_error: np.ndarray
    key_ulps: np.ndarray
    value_ulps: np.ndarray
    dtype: str
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CachedTensors(FromMessage):
    """What a cache holds after a sequence: per layer the shapes (batch, kv_heads, length, head_dim), the dtype, the bytes of both.

    sliding: per layer its window in tokens, 0 where it keeps everything.
    """

    key_shapes: tuple[tuple[int, ...], ...]
    value_shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    stored_bytes: tuple[int, ...]
    sliding: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RouteComparisons:
    """Two routes over several sequences, in order; ``cache``: of the candidate's last sequence."""

    sequences: tuple[RouteComparison, ...]
    cache: CachedTensors | None

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RouteComparisons:
        """Build from a worker's message."""
        cache = message.get("cache")
        return cls(
            sequences=tuple(RouteComparison.from_message(entry) for entry in message["sequences"]),
            cache=CachedTensors.from_message(cache) if cache else None,
        )
