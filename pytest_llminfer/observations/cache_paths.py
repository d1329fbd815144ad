"""Ways through a model's KV cache that must all give the same distributions, and what two of them gave. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations.message import FromMessage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

CACHES = ("none", "dynamic", "static", "quantized", "fp8")


@dataclass(frozen=True, slots=True)
class Route(FromMessage):
    """How given tokens are fed to a model.

    chunks: lengths of the successive forward passes over a sequence of T tokens, which sum to T: ``(T,)`` is prefill,
    ``(1,) * T`` is decoding, anything between is chunked prefill or a conversation of several turns; empty means ``(T,)``.
    cache: one of ``CACHES``; ``none`` computes every prefix anew; ``dynamic`` is what the configuration implies, layers of a
    sliding window included; ``static`` has ``spare`` slots more than it has columns; ``quantized`` packs into ``cache_bits`` (2
    or 4) what is older than at most ``residual`` tokens; ``fp8`` has one scale a tensor, by the largest value of the first
    chunk. Both leave the first chunk exact in the pass that computes it: what they do shows in later chunks alone.
    pads_left, pads_right: masked tokens put before every sequence, and after what its first chunk holds: with more chunks they
    lie between its tokens, as after a prompt of a batch padded on the right. batch: rows that are computed together, other
    sequences of the request beside each (1: alone); they are padded to one length on the left, or on the right if
    ``pads_right`` alone asks for pads. crop: after its first ``crop`` tokens, ``crop_extra`` other tokens are fed and cropped
    away again; 0 for none. beams: rows that are copied out of one after its first chunk; each chunk goes on in one of them,
    other tokens in the others, and all change places after it; 1 for none. prefix: tokens whose cache is filled in one pass by
    another sequence that begins the same, cropped, copied and gone on with (static and quantized caches, which cannot be
    cropped: filled by these tokens alone); 0 for none. Rows of a cache: ``batch * beams``. Columns: the tokens, their pads, and
    what evens out the rows of a batch.
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
    residual: int = 128
    spare: int = 16

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
    float64: of the first layer, the largest difference in units in the last place of the storage dtype, 0 where bit-equal; the unit
    is that of the largest value of the key, NaN as above. dtype: of the cache's tensors, in the words of a cell, or ``int4``.
    lengths (L,): tokens that the candidate's cache holds of it at the end. nearest_head (L, H, T) int32: the reference's head
    whose key at the same position is nearest to the candidate's: another one tells of swapped heads. nearest_position (L, T) int32:
    the position of the reference whose values are nearest: another one tells of a wrong slot or block, its own one with large
    errors of a wrong token or projection. Both -1 where a route keeps no such position; in a sound cache each is its own.
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
    """What a cache holds after a sequence: per layer the shapes (batch, kv_heads, length, head_dim), the dtype, the bytes of both.

    sliding: per layer its window in tokens, 0 where it keeps everything; a static layer that is shorter than its window has its
    own length here. Of a quantized layer the shapes are of all that is read back from it, and the bytes those that are stored,
    scales included. scales: per layer those of keys and values where a whole tensor has one (``fp8``), else empty; largest: per
    layer the largest magnitude of its keys and of its values, which with a scale that was measured is 448 times this.
    residual: per layer the tokens that a quantized cache has not packed yet.
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
