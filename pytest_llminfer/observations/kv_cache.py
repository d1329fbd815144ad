"""What an engine keeps in its KV cache, and what it counts there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.observations.message import FromMessage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class KVPool(FromMessage):
    """The paged KV cache that an engine allocates in advance.

    Attributes:
        num_blocks: Blocks that requests can use; a block that the engine reserves for itself is not counted.
        block_size: Tokens of a block.
        capacity_tokens: Tokens that fit at once: ``num_blocks * block_size``.
        dtype: What keys and values are stored in, in torch's words; two words joined by "+" where they differ.
        stored_bytes: Bytes of the pool over all layers and ranks of one replica, reserved blocks included.
        bytes_per_token: Bytes of one token over all layers and ranks of one replica.
        max_model_len: Longest sequence that the engine accepts, in tokens.
        max_concurrency: How many sequences of that length fit at once by the engine's own account; None where it does not say.
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
    """What an engine has counted since it was loaded.

    Attributes:
        preemptions: Requests that lost their cache to others and were recomputed; None where the engine does not say.
        prefix_queries: Prompt tokens looked up in the prefix cache; None where the engine does not say.
        prefix_hits: Prompt tokens found there; None where the engine does not say.
    """

    preemptions: int | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None


@dataclass(frozen=True, slots=True)
class CacheLayer(FromMessage):
    """Keys and values of one layer. Shapes are (batch, kv_heads, length, head_dim).

    Attributes:
        key_shape: Shape of the keys.
        value_shape: Shape of the values.
        dtype: What they are stored in, in torch's words.
        stored_bytes: Bytes of keys and values together.
    """

    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    dtype: str
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The KV cache after a prompt, and what happened to it while the generation went on.

    Attributes:
        prompt_tokens: Length of the prompt.
        extended_tokens: Tokens decoded after the snapshot.
        layers: The cache right after the prompt, by layer.
        extended_layers: The cache after decoding, by layer.
        prefix_differences: Per layer, for keys and for values, the largest absolute difference between the snapshot and the same
            positions after decoding; 0.0 means bit-equal.
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
