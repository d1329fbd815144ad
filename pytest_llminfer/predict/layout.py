"""The exact layout of a model: every tensor that its configuration and the declared storage of its quantization imply.

Only the linears of the layers are quantized; embeddings, norms, biases and the output matrix keep the model's dtype.
``declared_formats.toml`` says how the linears are stored, ``checkpoints/gguf_mixtures.py`` which types a GGUF file has.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llminfer.checkpoints.gguf_model import block_elements, stored_type, type_bytes
from pytest_llminfer.models.shape import torch_dtype
from pytest_llminfer.observations.layout import Parameter
from pytest_llminfer.predict.declared_formats import BYTES, Format, TensorRule, find, size
from pytest_llminfer.predict.rules import storage_of
from pytest_llminfer.predict.shards import fused, is_fused, rank_part, sharded_roles, stages_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pytest_llminfer.models.shape import ModelShape, WeightShape
    from pytest_llminfer.predict.rules import EngineRules

LINEARS = ("attention", "mlp")
"""Roles of the weights that quantizations are for."""

_GGML = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_FROM_GGML = {kind: name for name, kind in _GGML.items()}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One stored weight as it should be found.

    Attributes:
        parameter: The tensor, its device left open.
        tensors: Bytes of each tensor that holds the weight: the weight itself first, then its quantization state.
        role: What the weight is for, one of ``models.shape.ROLES``.
        module: The linear that a packed tensor belongs to; empty for any other.
    """

    parameter: Parameter
    tensors: tuple[int, ...]
    role: str
    module: str = ""


def expected_layout(
    *,
    shape: ModelShape,
    dtype: str,
    quantization: str,
    double_quantized: bool | None = None,
    engine: EngineRules,
    group_size: int | None = None,
    device: str = "cpu",
) -> tuple[StoredWeight, ...]:
    """Every tensor of a model as it should be stored, in the order of the model; devices are left open.

    dtype: the model's, in the words of a cell or of torch. double_quantized: whether the absolute maxima of nf4 or fp4 are
    quantized too; None for the usual. engine: whose names and fusing are meant, or the rules of a kind of files.
    group_size: inputs that share a scale, -1 for all; None for the usual. device: its kind, for engines that repack for it.

    Raises:
        UnsupportedError: a quantization whose storage is not known here: a visible skip.
    """
    dtype = torch_dtype(dtype)
    if storage_of(engine).gguf:
        return tuple(_in_gguf(weight, shape, dtype, quantization) for weight in shape.parameters())
    declared = _declared(quantization, engine, device, group_size)
    double = declared.double_quantized if double_quantized is None or not declared.double else double_quantized
    return _stored(held_weights(shape, engine), declared, dtype, engine=engine, double_quantized=double)


def expected_rank_layouts(  # noqa: PLR0913 - what a cell is
    *,
    shape: ModelShape,
    dtype: str,
    quantization: str,
    engine: EngineRules,
    tp: int,
    pp: int,
    plan: Collection[str] = (),
    group_size: int | None = None,
    device: str = "cpu",
) -> dict[tuple[int, int], tuple[StoredWeight, ...]]:
    """Every tensor that each rank should store, by (pipeline rank, tensor rank).

    plan: the modules that the engine says it shards (``shards.sharded_roles``). A format's shape rules are over the rank's own part
    of a linear, fused where the engine fuses: so its kernels are built.

    Raises:
        UnsupportedError: an engine, a quantization or a split whose storage is not known here: a visible skip.
    """
    declared, sharded = _declared(quantization, engine, device, group_size), sharded_roles(shape, engine, plan) if tp > 1 else ()
    held: dict[tuple[int, int], list[WeightShape]] = {(stage, rank): [] for stage in range(pp) for rank in range(tp)}
    for weight in shape.parameters():
        for stage, rank in itertools.product(stages_of(weight, shape, pp, engine), range(tp)):
            held[stage, rank].append(rank_part(weight, shape, engine=engine, tp=tp, sharded=sharded, rank=rank))
    fuses = is_fused(shape, engine)
    return {
        place: _stored(
            fused(parts, engine) if fuses else parts,
            declared,
            torch_dtype(dtype),
            engine=engine,
            double_quantized=declared.double_quantized,
        )
        for place, parts in held.items()
    }


def _declared(quantization: str, engine: EngineRules, device: str, group_size: int | None) -> Format:
    declared = find(quantization, engine, device)
    return declared if group_size is None or declared.group is None else replace(declared, group=group_size)


def _stored(
    weights: Iterable[WeightShape], declared: Format, dtype: str, *, engine: EngineRules, double_quantized: bool | None
) -> tuple[StoredWeight, ...]:
    return tuple(
        stored
        for weight in weights
        for stored in (
            _packed(weight, declared, dtype, engine=engine, double_quantized=double_quantized)
            if weight.role in declared.roles
            else (_plain(weight, dtype),)
        )
    )


_SCALE_BYTES = 4
_CACHE_SCALES = ("attn._q_scale", "attn._k_scale", "attn._v_scale")


def of_weights(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Without the scales of the KV cache, an fp32 each, that vLLM registers beside a compressed-tensors checkpoint on a GPU."""
    return [each for each in parameters if not (each.name.endswith(_CACHE_SCALES) and each.stored_bytes == _SCALE_BYTES)]


def asked_device(parameters: Sequence[Parameter], asked: str) -> str:
    """The kind of device that holds the parameters, with what the engine was asked for behind it, as ``formats.find`` takes it."""
    kind = parameters[0].device.partition(":")[0] if parameters else "cpu"
    return f"{kind}-{asked}" if asked else kind


def held_weights(shape: ModelShape, engine: EngineRules) -> tuple[WeightShape, ...]:
    """The weights of a model as an engine holds them: one by one, or with those that it multiplies together in one matrix."""
    if not is_fused(shape, engine):
        return shape.parameters()
    return fused((rank_part(weight, shape, engine=engine, tp=1, sharded=()) for weight in shape.parameters()), engine)


def _plain(weight: WeightShape, dtype: str) -> StoredWeight:
    taken = weight.elements * BYTES[dtype]
    return StoredWeight(Parameter(weight.name, dtype, weight.shape, weight.shape, taken), (taken,), weight.role)


def _packed(
    weight: WeightShape, declared: Format, dtype: str, *, engine: EngineRules, double_quantized: bool | None
) -> tuple[StoredWeight, ...]:
    """The tensors of one linear: parameters of their own, or one with the others as its state."""
    rows, columns = weight.shape[::-1] if weight.transposed else weight.shape
    group = columns if declared.group == -1 else declared.group
    module = weight.name.removesuffix(".weight")
    parts = storage_of(engine).fused.get(module.rpartition(".")[2], ("",))
    sizes = {"out": rows, "in": columns, "parts": len(parts), **({"group": group} if group else {})}
    first, *others = (
        _tensor(rule, f"{module}.{rule.name}", dtype, sizes, declared) for rule in declared.rules(double_quantized=double_quantized)
    )
    if not declared.attached:
        return tuple(StoredWeight(one, (one.stored_bytes,), weight.role, module) for one in (first, *others))
    state = tuple((other.dtype, other.stored_bytes) for other in others)
    added = sum(taken for _, taken in state)
    parameter = replace(
        first,
        shape=(rows, columns),
        stored_bytes=first.stored_bytes + added,
        state_bytes=added,
        state=state,
        block_size=declared.group,
        double_quantized=double_quantized,
    )
    return (StoredWeight(parameter, (first.stored_bytes, *(taken for _, taken in state)), weight.role, module),)


def _tensor(rule: TensorRule, name: str, dtype: str, sizes: dict[str, int], declared: Format) -> Parameter:
    shape = tuple(size(part, sizes) for part in rule.shape)
    kind = dtype if rule.dtype == "model" else rule.dtype
    packing = declared.packing if rule.packing is None else rule.packing
    return Parameter(name, kind, shape, shape, math.prod(shape) * BYTES[kind], packing=packing)


def _in_gguf(weight: WeightShape, shape: ModelShape, dtype: str, quantization: str) -> StoredWeight:
    """One tensor of a GGUF file, in the type that llama.cpp's mixture gives it."""
    kind = stored_type(
        weight.name,
        weight.shape,
        quantization=quantization,
        dtype=_GGML[dtype],
        layers=shape.layers,
        tied=shape.tied,
        groups=shape.heads // shape.kv_heads,
    )
    taken, name = type_bytes(kind, weight.elements), _FROM_GGML.get(kind)
    parameter = Parameter(
        name=weight.name,
        dtype=name or kind,
        shape=weight.shape,
        stored_shape=weight.shape,
        stored_bytes=taken,
        packing="" if name else kind,
        block_size=None if name else block_elements(kind),
    )
    return StoredWeight(parameter, (taken,), weight.role)
