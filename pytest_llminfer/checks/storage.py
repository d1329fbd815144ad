"""How each role of weight is stored in each quantization, and from that the exact layout of a model.

Only the linears of the layers are quantized; embeddings, norms, biases and the output matrix keep the model's dtype.
The bytes are those of bitsandbytes 0.50 in transformers 5.23, read from loaded models (QuantState and SCB), for CPU and GPU alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.gguf import block_elements, stored_type, type_bytes
from pytest_llminfer.models.shape import ROLES, item_bytes, torch_dtype
from pytest_llminfer.observations import Parameter

if TYPE_CHECKING:
    from pytest_llminfer.models.shape import ModelShape, WeightShape

BLOCK = 64
"""Weights that share one absolute maximum in nf4 and fp4."""
NESTED_BLOCK = 256
"""Absolute maxima that share one of their own, where they are quantized too."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How a weight is held: the dtype of its tensor ("model" is the model's own), and the name of its packing.

    double_quantized: whether its scales are quantized too, unless a test says otherwise; None where that has no meaning.
    """

    dtype: str
    packing: str = ""
    double_quantized: bool | None = None


PLAIN = Storage("model")
_KEPT = dict.fromkeys(ROLES, PLAIN)
_LINEARS = ("attention", "mlp")

STORAGE: dict[str, dict[str, Storage]] = {
    "none": _KEPT,
    "int8": _KEPT | dict.fromkeys(_LINEARS, Storage("int8", "int8")),
    "nf4": _KEPT | dict.fromkeys(_LINEARS, Storage("uint8", "nf4", double_quantized=True)),
    "fp4": _KEPT | dict.fromkeys(_LINEARS, Storage("uint8", "fp4", double_quantized=False)),
}
"""Quantization → role → storage."""


FUSING = ("vllm", "sglang")
"""Engines that hold q, k and v of a layer as one matrix, gate and up as another, and fill the vocabulary up to whole blocks."""
VOCABULARY_BLOCK = 64

_GGML = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_FROM_GGML = {kind: name for name, kind in _GGML.items()}
_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight as it should be found, and the bytes of each tensor that holds it: the weight, then its state."""

    parameter: Parameter
    tensors: tuple[int, ...]


def expected_layout(
    *, shape: ModelShape, dtype: str, quantization: str, double_quantized: bool | None = None, engine: str = "transformers"
) -> tuple[StoredWeight, ...]:
    """Every weight of a model as it should be stored, in the order of the model; devices are left open.

    dtype: the model's, in the words of a cell or of torch. double_quantized: whether the absolute maxima of nf4 or fp4 are
    quantized too; None for what ``STORAGE`` says. engine: whose names and fusing are meant.

    Raises:
        UnsupportedError: a quantization whose storage is not known here: a visible skip.
    """
    if engine == "llamacpp":
        return tuple(_in_gguf(weight, shape, torch_dtype(dtype), quantization) for weight in shape.parameters())
    if engine in FUSING and quantization != "none":
        raise UnsupportedError(f"how {engine} stores quantization {quantization!r} is not known here")
    if quantization not in STORAGE:
        raise UnsupportedError(f"the storage of quantization {quantization!r} is not known here (known: {', '.join(STORAGE)})")
    roles = STORAGE[quantization]
    return tuple(
        _stored(weight, roles[weight.role], torch_dtype(dtype), double_quantized=double_quantized)
        for weight in held_weights(shape, engine)
    )


def held_weights(shape: ModelShape, engine: str) -> tuple[WeightShape, ...]:
    """The weights of a model as an engine holds them: one by one, or with those that it multiplies together in one matrix."""
    weights = shape.parameters()
    if engine not in FUSING or shape.architecture == "gpt2":
        return weights
    held: dict[str, WeightShape] = {}
    for weight in weights:
        name = _fused_name(weight.name)
        rows, *columns = weight.shape
        if weight.role in ("embedding", "lm_head"):
            rows = -(-rows // VOCABULARY_BLOCK) * VOCABULARY_BLOCK
        before = held[name].shape[0] if name in held else 0
        held[name] = replace(weight, name=name, shape=(before + rows, *columns))
    return tuple(held.values())


def _fused_name(name: str) -> str:
    module, _, rest = name.rpartition(".")
    prefix, _, part = module.rpartition(".")
    fused = next((whole for whole, parts in _FUSED.items() if part in parts), part)
    return f"{prefix}.{fused}.{rest}" if prefix else name


def _stored(weight: WeightShape, storage: Storage, dtype: str, *, double_quantized: bool | None) -> StoredWeight:
    plain = Parameter(
        name=weight.name,
        dtype=dtype,
        shape=weight.shape,
        stored_shape=weight.shape,
        stored_bytes=weight.elements * item_bytes(dtype),
    )
    if not storage.packing:
        return StoredWeight(plain, (plain.stored_bytes,))
    blocks = storage.packing != "int8"
    double = storage.double_quantized if double_quantized is None or not blocks else double_quantized
    shape = weight.shape[::-1] if weight.transposed else weight.shape
    if blocks:
        stored_shape: tuple[int, ...] = (math.ceil(weight.elements / 2), 1)
        state = _four_bit_state(weight.elements, double_quantized=bool(double))
    else:
        stored_shape, state = shape, (4 * shape[0],)
    packed = math.prod(stored_shape)
    parameter = replace(
        plain,
        dtype=storage.dtype,
        shape=shape,
        stored_shape=stored_shape,
        stored_bytes=packed + sum(state),
        state_bytes=sum(state),
        packing=storage.packing,
        block_size=BLOCK if blocks else None,
        double_quantized=double,
    )
    return StoredWeight(parameter, (packed, *state))


def _in_gguf(weight: WeightShape, shape: ModelShape, dtype: str, quantization: str) -> StoredWeight:
    """One tensor of a GGUF file, in the type that llama.cpp's mixture gives it."""
    kind = stored_type(
        weight.name, weight.shape, quantization=quantization, dtype=_GGML[dtype], layers=shape.layers, tied=shape.tied
    )
    size, name = type_bytes(kind, weight.elements), _FROM_GGML.get(kind)
    parameter = Parameter(
        name=weight.name,
        dtype=name or kind,
        shape=weight.shape,
        stored_shape=weight.shape,
        stored_bytes=size,
        packing="" if name else kind,
        block_size=None if name else block_elements(kind),
    )
    return StoredWeight(parameter, (size,))


def _four_bit_state(elements: int, *, double_quantized: bool) -> tuple[int, ...]:
    """Bytes of the state of ``elements`` 4-bit weights, a tensor each.

    Plain: one fp32 maximum a block, a codebook of 16 fp32. Double: one uint8 a block, the same codebook, an fp32 offset, one
    fp32 maximum for 256 blocks, a codebook of 256 fp32. Every weight has its own copy of the codebooks.
    """
    blocks = math.ceil(elements / BLOCK)
    if not double_quantized:
        return 4 * blocks, 64
    return blocks, 64, 4, 4 * math.ceil(blocks / NESTED_BLOCK), 1024
