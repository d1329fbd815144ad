"""The bytes of a model's weights by role, as one rank holds them in each format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llminfer.checkpoints.gguf_mixtures import MIXTURES, stored_type, type_bytes
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.shape import item_bytes, torch_dtype
from pytest_llminfer.predict.allocator import cuda_allocation
from pytest_llminfer.predict.formats import DEFAULTS, LINEAR_FORMATS, FormatOptions, is_double, linear_tensors
from pytest_llminfer.predict.rules import storage_of
from pytest_llminfer.predict.shards import fused, is_fused, rank_part, sharded_roles, stages_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pytest_llminfer.models.shape import ModelShape, WeightShape
    from pytest_llminfer.predict.rules import EngineRules

FORMATS = ("none", *LINEAR_FORMATS, *MIXTURES)
"""Quantizations whose bytes are known."""

_LINEARS = ("attention", "mlp")
_GGML = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class HeldWeight:
    """A weight as one rank holds it.

    Attributes:
        name: Its name in transformers; that of the fused matrix where the engine joins linears.
        role: What it is for, one of ``models.shape.ROLES``.
        tensors: Bytes of each tensor, the weight first, then its quantization state.
    """

    name: str
    role: str
    tensors: tuple[int, ...]


def held_weights(
    shape: ModelShape,
    *,
    dtype: str,
    quantization: str = "none",
    engine: EngineRules,
    tp: int = 1,
    pp: int = 1,
    plan: Collection[str] = (),
    options: FormatOptions = DEFAULTS,
) -> dict[int, tuple[HeldWeight, ...]]:
    """What a rank holds, by its pipeline stage; all tensor ranks of a stage hold as much.

    dtype: the model's, in the words of a cell or of torch. plan: the modules that the engine says it shards
    (:func:`shards.sharded_roles`).

    Raises:
        UnsupportedError: a quantization, an engine or a split whose bytes are not known here.
        BadInputError: groups that do not divide the inputs of a linear.
    """
    if quantization not in FORMATS:
        raise UnsupportedError(
            f"the storage of quantization {quantization!r} is not known here", f"use one of: {', '.join(FORMATS)}"
        )
    options = replace(options, double_quantized=is_double(quantization, engine, options))
    sharded: Collection[str] = sharded_roles(shape, engine, plan) if tp > 1 else ()
    stages: dict[int, list[WeightShape]] = {stage: [] for stage in range(pp)}
    for weight in shape.parameters():
        part = rank_part(weight, shape, engine=engine, tp=tp, sharded=sharded)
        for stage in stages_of(weight, shape, pp, engine):
            stages[stage].append(part)
    in_gguf = storage_of(engine).gguf or quantization in MIXTURES
    fuses = is_fused(shape, engine) and not in_gguf
    return {
        stage: tuple(
            _in_gguf(part, shape, dtype, quantization) if in_gguf else _held(part, dtype, quantization, options)
            for part in (fused(parts, engine) if fuses else parts)
        )
        for stage, parts in stages.items()
    }


def _in_gguf(weight: WeightShape, shape: ModelShape, dtype: str, quantization: str) -> HeldWeight:
    kind = stored_type(
        weight.name,
        weight.shape,
        quantization=quantization,
        dtype=_GGML[torch_dtype(dtype)],
        layers=shape.layers,
        tied=shape.tied,
        groups=shape.heads // shape.kv_heads,
    )
    return HeldWeight(weight.name, weight.role, (type_bytes(kind, weight.elements),))


def _held(weight: WeightShape, dtype: str, quantization: str, options: FormatOptions) -> HeldWeight:
    if quantization == "none" or weight.role not in _LINEARS:
        return HeldWeight(weight.name, weight.role, (weight.elements * item_bytes(dtype),))
    rows, columns = weight.shape[::-1] if weight.transposed else weight.shape
    return HeldWeight(weight.name, weight.role, linear_tensors(rows, columns, quantization=quantization, options=options))


def stored_bytes(weights: Iterable[HeldWeight]) -> int:
    """Bytes of what the tensors hold, without any rounding."""
    return sum(size for weight in weights for size in weight.tensors)


def allocated_bytes(weights: Iterable[HeldWeight]) -> int:
    """Bytes that PyTorch's CUDA allocator counts for the same tensors, each taken by itself."""
    return sum(cuda_allocation(size) for weight in weights for size in weight.tensors)


def bytes_by_role(weights: Iterable[HeldWeight]) -> dict[str, int]:
    """Role → bytes, in the order of the model."""
    roles = Counter[str]()
    for weight in weights:
        roles[weight.role] += sum(weight.tensors)
    return dict(roles)


def bits_per_weight(shape: ModelShape, weights: Iterable[HeldWeight]) -> float:
    """Bits of a stored parameter on average, scales included, as llama.cpp prints it."""
    return 8 * stored_bytes(weights) / shape.parameter_count
