"""The paged KV cache of engines that take it in advance: its size is blocks x block size x bytes a token, exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from pytest_llminfer.observations import KVPool

BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "fp8": 8, "fp8_e5m2": 8, "q8_0": 8.5, "q4_0": 4.5}
"""Bits of one stored value, scales of a block included: a Q8_0 block holds 32 values in 34 bytes, a Q4_0 block in 18."""


def check_kv_pool(*, pool: KVPool, layers: int, kv_heads: int, head_dim: int, dtype: str, copies: int = 1) -> Verdict:
    """Whether the pool has the bytes that its blocks imply, in the cell's dtype, and room for the longest sequence.

    dtype: of keys and values, in the words of a cell. copies: how often each KV head is held, where more tensor-parallel ranks
    than heads share them. Bytes of a token: 2 x layers x kv_heads x head_dim x bytes (METHODS 4.1).

    Raises:
        UnsupportedError: a dtype whose size is not known here.
    """
    if dtype not in BITS:
        raise UnsupportedError(f"the size of a KV cache of dtype {dtype!r} is not known here (known: {', '.join(BITS)})")
    per_token = int(2 * layers * kv_heads * head_dim * BITS[dtype] / 8) * copies
    lines = [] if pool.num_blocks and pool.block_size else ["nothing was compared: the pool has no blocks"]
    if pool.bytes_per_token != per_token:
        lines.append(f"{pool.bytes_per_token:,} bytes a token instead of {per_token:,}")
    tokens, reserved = pool.num_blocks * pool.block_size, pool.block_size
    if pool.stored_bytes not in (tokens * per_token, (tokens + reserved) * per_token):
        lines.append(f"{pool.stored_bytes:,} bytes instead of {tokens * per_token:,} for {tokens:,} tokens")
    if pool.capacity_tokens != tokens:
        lines.append(f"a capacity of {pool.capacity_tokens:,} tokens, though the blocks hold {tokens:,}")
    if BITS[dtype] >= 16 and pool.dtype != torch_dtype(dtype):  # noqa: PLR2004 - quantized caches are named by each engine in its way
        lines.append(f"stored as {pool.dtype} instead of {torch_dtype(dtype)}")
    if pool.capacity_tokens < pool.max_model_len:
        lines.append(f"a sequence may have {pool.max_model_len:,} tokens, the pool holds {pool.capacity_tokens:,}")
    sequences = pool.capacity_tokens / pool.max_model_len if pool.max_model_len else 0.0
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="the KV pool has the bytes that its blocks and the model's configuration imply",
        key=f"{pool.capacity_tokens:,} tokens",
        measurements=(
            Measurement("pool", pool.stored_bytes, "bytes", pool.num_blocks, f"blocks of {pool.block_size} tokens"),
            Measurement("capacity", pool.capacity_tokens, "tokens", 1, f"{sequences:.2f} sequences of {pool.max_model_len:,}"),
            Measurement("a token", pool.bytes_per_token, "bytes", 1, f"expected {per_token:,}"),
        ),
        threshold=f"exactly {per_token:,} bytes a token; at most one block more, which the engine keeps to itself",
        threshold_source="2 x layers x kv_heads x head_dim x bytes, from the model's configuration",
        smallest_detectable="exact",
        advice="look at the cache's dtype, at padding of head_dim, and at layers that keep no cache or a second one",
        details=tuple(lines),
    )
