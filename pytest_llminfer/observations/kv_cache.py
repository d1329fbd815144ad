"""What an engine keeps in its KV cache, and what it counts there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations.message import FromMessage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class KVPool(FromMessage):
    """The paged KV cache that an engine takes in advance.

    num_blocks blocks of block_size tokens hold capacity_tokens at once; a block that the engine keeps to itself is not among
    them, but its bytes are. dtype: in torch's
    words. stored_bytes: of the pool's tensors over all layers and ranks of one replica; bytes_per_token: the same, of one token.
    max_model_len: the longest sequence. max_concurrency: how many of those the engine says it has room for; None where it says
    nothing.
    """

    num_blocks: int
    block_size: int
    capacity_tokens: int
    dtype: str
    stored_bytes: int
    bytes_per_token: int
    max_model_len: int
    max_concurrency: float | None = None


@dataclass(frozen=True, slots=True)
class CacheCounters(FromMessage):
    """What an engine counted since it was loaded; None where it does not say.

    preemptions: requests that lost their cache to others and were computed anew. prefix_queries, prefix_hits: prompt tokens that
    were looked up in the prefix cache, and that were found.
    """

    preemptions: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None


@dataclass(frozen=True, slots=True)
class CacheLayer(FromMessage):
    """Keys and values of one layer: shapes (batch, kv_heads, length, head_dim), bytes of both together."""

    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    dtype: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The KV cache after a prompt, and what happened to it while the generation went on.

    prompt_tokens: its length; extended_tokens: how many tokens were decoded after the snapshot.
    layers: right after the prompt; extended_layers: after decoding.
    prefix_differences: per layer, the largest absolute difference between the snapshot and the same positions afterwards,
    keys and values (0.0 means bit-equal).
    """

    prompt_tokens: int
    extended_tokens: int
    layers: tuple[CacheLayer, ...]
    extended_layers: tuple[CacheLayer, ...]
    prefix_differences: tuple[tuple[float, float], ...]

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> CacheReport:
        """Build from a worker's message."""
        return cls(
            prompt_tokens=message["prompt_tokens"],
            extended_tokens=message["extended_tokens"],
            layers=tuple(CacheLayer.from_message(layer) for layer in message["layers"]),
            extended_layers=tuple(CacheLayer.from_message(layer) for layer in message["extended_layers"]),
            prefix_differences=tuple((float(keys), float(values)) for keys, values in message["prefix_differences"]),
        )
