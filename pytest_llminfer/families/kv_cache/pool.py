"""The paged KV cache of engines that take it in advance: its size is blocks x block size x bytes a token, exactly."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.predict.kv import BITS
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from pytest_llminfer.observations.kv_cache import KVPool


def check_kv_pool(*, pool: KVPool, layers: int, kv_heads: int, head_dim: int, dtype: str, copies: int = 1) -> Verdict:
    """Whether the pool has the bytes that its blocks imply, in the cell's dtype, and room for the longest sequence.

    dtype: of keys and values, in the words of a cell. copies: how often each KV head is held, where more tensor-parallel ranks
    than heads share them. Bytes of a token: 2 x layers x kv_heads x head_dim x bytes (docs/methods.md#keys-and-values).

    Raises:
        UnsupportedError: a dtype whose size is not known here.
    """
    if dtype not in BITS:
        raise UnsupportedError(f"the size of a KV cache of dtype {dtype!r} is not known here", f"use one of: {', '.join(BITS)}")
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
    lines += _concurrency(pool)
    sequences = pool.capacity_tokens / pool.max_model_len if pool.max_model_len else 0.0
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="the KV pool has the bytes that its blocks and the model's configuration imply",
        key=f"{pool.capacity_tokens:,} tokens",
        measurements=(
            Measurement("pool", pool.stored_bytes, "bytes", pool.num_blocks, f"blocks of {pool.block_size} tokens"),
            Measurement("capacity", pool.capacity_tokens, "tokens", 1, f"{sequences:.2f} sequences of {pool.max_model_len:,}"),
            *(
                (Measurement("maximum concurrency", pool.max_concurrency, "sequences", 1, "by the engine"),)
                if pool.max_concurrency is not None
                else ()
            ),
            Measurement("a token", pool.bytes_per_token, "bytes", 1, f"expected {per_token:,}"),
        ),
        threshold=f"exactly {per_token:,} bytes a token; at most one block more, which the engine keeps to itself",
        threshold_source="2 x layers x kv_heads x head_dim x bytes, from the model's configuration",
        smallest_detectable="exact",
        advice="look at the cache's dtype, at padding of head_dim, and at layers that keep no cache or a second one",
        details=tuple(lines),
    )


def maximum_concurrency(*, num_blocks: int, block_size: int, max_model_len: int) -> float:
    """How many sequences of ``max_model_len`` tokens the blocks hold, of which each takes whole ones.

    25,626 blocks of 16 hold 12.51 sequences of 32,768, as vLLM logs it (docs/methods.md#published-log-lines).
    """
    return num_blocks / math.ceil(max_model_len / block_size)


def _concurrency(pool: KVPool) -> list[str]:
    """What is wrong with the engine's own figure; vLLM counts the block that it keeps to itself."""
    if pool.max_concurrency is None or not (pool.block_size and pool.max_model_len):
        return []
    possible = [
        maximum_concurrency(num_blocks=blocks, block_size=pool.block_size, max_model_len=pool.max_model_len)
        for blocks in (pool.num_blocks, pool.num_blocks + 1)
    ]
    if any(math.isclose(pool.max_concurrency, value, rel_tol=1e-9) for value in possible):
        return []
    return [f"the engine counts on {pool.max_concurrency:.2f} sequences at once, its blocks hold {possible[0]:.2f}"]
