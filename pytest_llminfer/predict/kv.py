"""What keys and values take: bytes of a token, of a sequence, blocks of a pool, and how many sequences it holds."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, InvalidSpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.models.shape import ModelShape

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp8_e5m2": 8, "q8_0": 8.5, "q4_0": 4.5}
"""Bits of one stored value, scales of a block included: a Q8_0 block holds 32 values in 34 bytes, a Q4_0 block in 18."""

BLOCK_TOKENS = 16
"""Tokens of a block of vLLM on a GPU."""

_SLIDING = "sliding_attention"


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that cache alike.

    Attributes:
        layers: How many layers.
        kv_heads: KV heads of a layer of the whole model, not of one rank.
        head_dim: Elements of one head's key or value.
        window: How many of the latest tokens they keep; None for all.
    """

    layers: int
    kv_heads: int
    head_dim: int
    window: int | None = None

    def bytes_per_token(self, dtype: str, *, tp: int = 1) -> int:
        """Bytes of one token on one rank: 2 x layers x heads x head_dim x bytes (docs/methods.md#keys-and-values).

        Multi-head and grouped-query differ in ``kv_heads`` alone. Each rank has at least one KV head.

        Raises:
            InvalidSpecError: a dtype whose size is not known here.
        """
        if dtype not in BITS:
            raise InvalidSpecError("KV dtype", dtype, BITS)
        heads = max(1, self.kv_heads // tp)
        return int(2 * self.layers * heads * self.head_dim * BITS[dtype] / 8)

    def tokens_held(self, length: int, *, in_flight: int = 0) -> int:
        """Tokens that these layers keep of a sequence of ``length``, of which ``in_flight`` are still being computed."""
        return length if self.window is None else min(length, self.window - 1 + max(in_flight, 1))

    def blocks_held(self, length: int, *, block: int, in_flight: int = 0) -> int:
        """Blocks for those tokens; with ``in_flight`` one more, because a window may begin within a block."""
        return -(-self.tokens_held(length, in_flight=in_flight) // block) + (self.window is not None and in_flight > 0)


def kv_groups(config: Mapping[str, Any], shape: ModelShape) -> tuple[KVGroup, ...]:
    """The layers of a model by how they cache: in full, or a window.

    A window is what config.json says: ``layer_types`` by layer; else ``sliding_window`` for all layers, with
    ``use_sliding_window: false`` for none, and ``max_window_layers`` for those from that number on (Qwen2).

    Raises:
        BadInputError: a window that is no positive whole number.
    """
    window = config.get("sliding_window")
    if window is None or config.get("use_sliding_window", True) is False:
        sliding = 0
    elif not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise BadInputError(f"sliding_window in config.json must be a positive whole number, not {window!r}")
    elif isinstance(types := config.get("layer_types"), list):
        sliding = sum(kind == _SLIDING for kind in types)
    elif "use_sliding_window" in config:
        sliding = max(shape.layers - int(config.get("max_window_layers", 0)), 0)
    else:
        sliding = shape.layers
    sizes = {"kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    groups = (KVGroup(shape.layers - sliding, **sizes), KVGroup(sliding, **sizes, window=window if sliding else None))
    return tuple(group for group in groups if group.layers)


def bytes_per_token(groups: Sequence[KVGroup], dtype: str, *, tp: int = 1) -> int:
    """Bytes that a token takes while every layer keeps it."""
    return sum(group.bytes_per_token(dtype, tp=tp) for group in groups)


def pool_blocks(pool_bytes: int, groups: Sequence[KVGroup], dtype: str, *, tp: int = 1, block: int = BLOCK_TOKENS) -> int:
    """Whole blocks of a pool: ``pool_bytes // (page bytes x layers)``, as vLLM counts them (docs/methods.md#keys-and-values)."""
    return max(pool_bytes, 0) // (block * bytes_per_token(groups, dtype, tp=tp))


def concurrency(blocks: int, groups: Sequence[KVGroup], length: int, *, block: int = BLOCK_TOKENS, in_flight: int = 0) -> Fraction:
    """Sequences of ``length`` tokens that a pool of ``blocks`` holds at once, as vLLM's log prints it.

    in_flight: tokens for which blocks behind a window are kept until they are computed: vLLM's ``max_in_flight_tokens``, its
    concurrent batches times ``max_num_batched_tokens`` (``SlidingWindowSpec`` of 0.32); 0 in other engines.

    One group: ``blocks x block / length`` in whole blocks. With windows each layer takes its own blocks of a sequence, so the
    share of a block that a sequence takes is averaged over the layers. Where both kinds are, vLLM fills their layers up to whole
    bundles of one size (``_get_kv_cache_groups_uniform_page_size``).
    """
    layers = sum(group.layers for group in groups)
    bundle = _bundle(groups) if in_flight else 1
    taken = sum(
        -(-group.layers // bundle) * bundle * group.blocks_held(length, block=block, in_flight=in_flight) for group in groups
    )
    return Fraction(blocks * layers, taken) if taken else Fraction(0)


def _bundle(groups: Sequence[KVGroup]) -> int:
    """Layers that share a block in vLLM: those of the smaller kind, or of the larger where it has less than half as many more."""
    counts = sorted(group.layers for group in groups) or [1]
    return counts[-1] if 2 * counts[-1] < 3 * counts[0] else counts[0]
