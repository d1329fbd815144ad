"""What will fit on a device, before anything is loaded: weights, room for keys and values, sequences at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.memory_model.allocator import MIB
from pytest_llminfer.memory_model.budget import CONTEXT_BYTES, UTILIZATION, DeviceBudget
from pytest_llminfer.memory_model.buffers import positions, rope_bytes
from pytest_llminfer.memory_model.formats import DEFAULTS, FormatOptions
from pytest_llminfer.memory_model.kv import BLOCK_TOKENS, KVGroup, bytes_per_token, concurrency, kv_groups
from pytest_llminfer.memory_model.shards import SHARDED
from pytest_llminfer.memory_model.weights import HeldWeight, allocated_bytes, bytes_by_role, held_weights, stored_bytes
from pytest_llminfer.models.shape import ModelShape, item_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

_LARGE_CARD = 70 * 2**30
_BATCHED_TOKENS = {True: 16_384, False: 8_192}
"""vLLM's max_num_batched_tokens of offline use, on cards of 70 GiB and more, and on others."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a model is served, in the words of a cell; kv_dtype ``auto`` is the dtype. options: what the quantization leaves open."""

    engine: str = "vllm"
    dtype: str = "bf16"
    quantization: str = "none"
    kv_dtype: str = "auto"
    tp: int = 1
    pp: int = 1
    options: FormatOptions = DEFAULTS


@dataclass(frozen=True, slots=True)
class Known:
    """Bytes that need no prediction: weights of a file that is there, and what an engine has logged. None: predict it."""

    weights: int | None = None
    activation_peak: int | None = None
    non_torch: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The predicted bytes of the fullest rank, and what they leave. estimated: the lines that are no exact prediction.

    roles: bytes of weights by role; bits: of a parameter, scales included, and what several ranks hold each.
    context: tokens of a sequence. kv_tokens: that the pool holds, in whole blocks; sequences: of ``context`` tokens at once, 0
    where nothing is left.
    """

    budget: DeviceBudget
    roles: Mapping[str, int]
    bits: float
    kv_bytes_per_token: int
    context: int
    kv_blocks: int
    kv_tokens: int
    sequences: Fraction
    estimated: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether one sequence of ``context`` tokens fits beside the weights."""
        return self.sequences >= 1


def plan_memory(
    config: Mapping[str, Any],
    deployment: Deployment,
    *,
    total: int,
    context: int | None = None,
    utilization: float | None = None,
    known: Known | None = None,
) -> MemoryPlan:
    """What a model takes of a device of ``total`` bytes.

    context: tokens of a sequence; the model's longest unless given. utilization: the engine's own unless given.

    Raises:
        UnsupportedError: an architecture, quantization, engine or split whose bytes are not known here.
        BadInputError: a context or a utilization that means nothing.
    """
    shape = ModelShape.from_config(config)
    engine, tp, known = deployment.engine, deployment.tp, known or Known()
    if engine not in UTILIZATION:
        raise UnsupportedError(f"how {engine} shares out a device is not known here (known: {', '.join(UTILIZATION)})")
    context = positions(config) if context is None else context
    utilization = UTILIZATION[engine] if utilization is None else utilization
    if context < 1 or not 0 < utilization <= 1:
        raise BadInputError(f"context must be positive, and utilization above 0 and at most 1; got {context} and {utilization:g}")
    if tp > 1 and engine not in SHARDED:
        raise UnsupportedError(f"{engine} does not spread a model over tensor-parallel ranks")
    if shape.heads % tp:
        raise UnsupportedError(f"{engine} cannot deal the {shape.heads} heads of this model to {tp} ranks")
    fullest = _fullest(shape, deployment)
    stored = known.weights
    if stored is None:
        stored = allocated_bytes(fullest) if engine in SHARDED else stored_bytes(fullest)
    activation = known.activation_peak
    if activation is None:
        activation = estimated_activation(shape, total=total, dtype=deployment.dtype, tp=tp)
    budget = DeviceBudget(
        total=total,
        utilization=utilization,
        weights=stored + rope_bytes(config, shape, engine=engine, dtype=deployment.dtype),
        non_torch=CONTEXT_BYTES if known.non_torch is None else known.non_torch,
        # SGLang's activations live outside its static fraction.
        activation_peak=0 if engine == "sglang" else activation,
    )
    groups = tuple(
        KVGroup(-(-group.layers // deployment.pp), group.kv_heads, group.head_dim, group.window)
        for group in kv_groups(config, shape)
    )
    per_token = bytes_per_token(groups, deployment.dtype if deployment.kv_dtype == "auto" else deployment.kv_dtype, tp=tp)
    block = BLOCK_TOKENS if engine == "vllm" else 1
    blocks = max(budget.kv_pool, 0) // (block * per_token)
    # One batch is scheduled while another is computed, and each further stage of a pipeline has one of its own.
    in_flight = (deployment.pp + 1) * _BATCHED_TOKENS[total >= _LARGE_CARD] if engine == "vllm" else 0
    return MemoryPlan(
        budget=budget,
        roles=bytes_by_role(fullest),
        bits=8 * stored * tp * deployment.pp / shape.parameter_count,
        kv_bytes_per_token=per_token,
        context=context,
        kv_blocks=blocks,
        kv_tokens=blocks * block,
        sequences=concurrency(blocks, groups, context, block=block, in_flight=in_flight),
        estimated=("activation peak",) * (known.activation_peak is None) + ("non-torch",) * (known.non_torch is None),
    )


def _fullest(shape: ModelShape, deployment: Deployment) -> tuple[HeldWeight, ...]:
    stages = held_weights(
        shape,
        dtype=deployment.dtype,
        quantization=deployment.quantization,
        engine=deployment.engine,
        tp=deployment.tp,
        pp=deployment.pp,
        options=deployment.options,
    )
    return max(stages.values(), key=stored_bytes)


def estimated_activation(shape: ModelShape, *, total: int, dtype: str, tp: int = 1) -> int:
    """Bytes of vLLM's profiling run, roughly: what one layer holds of a full batch while its widest product is made.

    Per token: the residual stream twice, and the larger of (gate and up, and their product) and (q, k, v and the attention's
    output); for the batch that vLLM takes of a card of this size. An estimate, to be replaced by what an engine has logged.
    """
    tokens = _BATCHED_TOKENS[total >= _LARGE_CARD]
    queries, keys = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    widest = max(3 * shape.intermediate, 2 * queries + keys) // tp
    return tokens * (2 * shape.hidden + widest) * item_bytes(dtype) // MIB * MIB
