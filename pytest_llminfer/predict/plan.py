"""What will fit on a device, before anything is loaded: weights, room for keys and values, sequences at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.gguf_mixtures import MIXTURES
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.shape import ModelShape, item_bytes
from pytest_llminfer.predict.allocator import MIB
from pytest_llminfer.predict.budget import CONTEXT_BYTES, DeviceBudget
from pytest_llminfer.predict.buffers import positions, rope_bytes
from pytest_llminfer.predict.formats import DEFAULTS, LINEAR_FORMATS, FormatOptions
from pytest_llminfer.predict.kv import KVGroup, bytes_per_token, concurrency, kv_groups, pool_blocks
from pytest_llminfer.predict.rules import storage_of
from pytest_llminfer.predict.shards import splitting_of
from pytest_llminfer.predict.weights import HeldWeight, allocated_bytes, bytes_by_role, held_weights, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from pytest_llminfer.predict.rules import DeviceSharing, EngineRules

_LARGE_CARD = 70 * 2**30
_BATCHED_TOKENS = {True: 16_384, False: 8_192}
"""vLLM's max_num_batched_tokens of offline use, on cards of 70 GiB and more, and on others. An A100 counts as one of the others."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a model is served, in the words of a cell.

    Attributes:
        engine: The rules of the engine.
        dtype: Of the model: ``bf16``, ``fp16`` or ``fp32``.
        quantization: How the linears are stored; ``none`` leaves them in ``dtype``.
        kv_dtype: How keys and values are stored; ``auto`` is the engine's own choice.
        tp: Tensor-parallel size, at least 1.
        pp: Pipeline-parallel size, at least 1.
        options: What the quantization leaves open.
    """

    engine: EngineRules
    dtype: str = "bf16"
    quantization: str = "none"
    kv_dtype: str = "auto"
    tp: int = 1
    pp: int = 1
    options: FormatOptions = DEFAULTS


@dataclass(frozen=True, slots=True)
class Known:
    """What needs no prediction, because a file is there or an engine has logged it. None means: predict it.

    Attributes:
        weights: Bytes of the weights of one rank.
        activation_peak: Bytes of activations of the engine's profiling run.
        non_torch: Bytes on the device outside PyTorch's allocator.
        graphs: Bytes of CUDA graphs that are taken out of the pool. Nothing predicts them: None counts as 0.
        batched_tokens: Tokens of one batch at most.
    """

    weights: int | None = None
    activation_peak: int | None = None
    non_torch: int | None = None
    graphs: int | None = None
    batched_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The predicted bytes of the fullest rank, and what they leave for keys and values.

    Attributes:
        budget: How the device is shared out.
        roles: Role to bytes of its weights on that rank, without any rounding.
        bits: Bits of a parameter on average if every rank holds as much as the fullest, scales and replicated weights included.
        kv_bytes_per_token: Bytes of keys and values of one token on that rank while every layer keeps it.
        context: Tokens of a sequence.
        kv_blocks: Whole blocks of the pool.
        kv_tokens: Tokens of those blocks.
        sequences: How many sequences of ``context`` tokens the pool holds at once; 0 where nothing is left.
        estimated: Names of the lines that are estimates instead of exact predictions.
        fits: Whether one such sequence fits beside the weights, without the blocks that the engine reserves for itself.
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
    fits: bool


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
    sharing = _sharing_of(engine)
    context = positions(config) if context is None else context
    utilization = sharing.utilization if utilization is None else utilization
    if context < 1 or not 0 < utilization <= 1:
        raise BadInputError(f"context must be positive, and utilization above 0 and at most 1; got {context} and {utilization:g}")
    if tp > 1 and not splitting_of(engine).roles:
        raise UnsupportedError(f"{engine.name} does not split a model over tensor-parallel ranks", "use tp=1")
    if shape.heads % tp:
        raise UnsupportedError(
            f"{engine.name} cannot split the {shape.heads} heads of this model over {tp} ranks",
            f"use a tp that divides {shape.heads}",
        )
    kv_dtype = _kv_dtype(deployment, sharing)
    _check_format(deployment, known)
    fullest = _fullest(shape, deployment)
    stored = known.weights
    if stored is None:
        stored = allocated_bytes(fullest) if sharing.allocator else stored_bytes(fullest)
    batched = _BATCHED_TOKENS[total >= _LARGE_CARD] if known.batched_tokens is None else known.batched_tokens
    activation = known.activation_peak
    if activation is None:
        activation = estimated_activation(shape, tokens=batched, dtype=deployment.dtype, tp=tp)
    non_torch = CONTEXT_BYTES if known.non_torch is None else known.non_torch
    static = sharing.of_free
    budget = DeviceBudget(
        total=total,
        utilization=utilization,
        weights=stored + rope_bytes(config, shape, engine=engine, dtype=deployment.dtype),
        # SGLang takes a fraction of what is free when it looks, and activations and graphs live outside it.
        non_torch=0 if static else non_torch,
        activation_peak=0 if static else activation,
        graphs=0 if static else known.graphs or 0,
        before=non_torch if static else 0,
    )
    groups = tuple(
        KVGroup(-(-group.layers // deployment.pp), group.kv_heads, group.head_dim, group.window)
        for group in (kv_groups(config, shape) if sharing.windows else kv_groups({}, shape))
    )
    block, own = sharing.block_tokens, sharing.reserved_blocks
    blocks = pool_blocks(budget.kv_pool, groups, kv_dtype, tp=tp, block=block)
    # One batch is scheduled while another is computed, and each further stage of a pipeline has one of its own.
    held: dict[str, int] = {"block": block, "in_flight": (deployment.pp + 1) * batched if sharing.in_flight else 0}
    return MemoryPlan(
        budget=budget,
        roles=bytes_by_role(fullest),
        bits=8 * stored * tp * deployment.pp / shape.parameter_count,
        kv_bytes_per_token=bytes_per_token(groups, kv_dtype, tp=tp),
        context=context,
        kv_blocks=blocks,
        kv_tokens=blocks * block,
        sequences=concurrency(blocks, groups, context, **held),
        estimated=("activation peak",) * (known.activation_peak is None) + ("non-torch",) * (known.non_torch is None),
        fits=concurrency(max(blocks - own, 0), groups, context, **held) >= 1,
    )


def _sharing_of(engine: EngineRules) -> DeviceSharing:
    if engine.sharing is None:
        raise engine.unsaid("sharing", f"how {engine.name} shares out a device")
    return engine.sharing


def _kv_dtype(deployment: Deployment, sharing: DeviceSharing) -> str:
    """What keys and values are kept in: what was asked for, or the engine's own choice.

    Raises:
        UnsupportedError: a dtype that the engine has no cache of.
    """
    wanted = deployment.kv_dtype
    if wanted == "auto":
        return sharing.kv_dtype or deployment.dtype
    known = tuple(dict.fromkeys((deployment.dtype, *sharing.kv_dtypes)))
    if wanted not in known:
        raise UnsupportedError(f"{deployment.engine.name} has no KV cache of {wanted} here", f"use kv_dtype={' or '.join(known)}")
    return wanted


def _check_format(deployment: Deployment, known: Known) -> None:
    """Refuse formats that the engine does not hold; a GGUF file that is there is taken as it is."""
    name, engine = deployment.quantization, deployment.engine
    in_gguf = storage_of(engine).gguf
    if known.weights is None and name in (LINEAR_FORMATS if in_gguf else MIXTURES):
        raise UnsupportedError(
            f"{engine.name} does not hold {name} weights",
            "use a format of GGUF files, which is what it reads" if in_gguf else "only llama.cpp does: --engine=llamacpp",
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


def estimated_activation(shape: ModelShape, *, tokens: int, dtype: str, tp: int = 1) -> int:
    """Bytes of vLLM's profiling run, roughly: what one layer holds of a full batch while its widest product is made.

    Per token: the residual stream twice, and the larger of (gate and up, and their product) and (q, k, v and the attention's
    output). tokens: of the batch. An estimate, to be replaced by what an engine has logged.
    """
    queries, keys = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    widest = max(3 * shape.intermediate, 2 * queries + keys) // tp
    return tokens * (2 * shape.hidden + widest) * item_bytes(dtype) // MIB * MIB
