"""Bytes of a layer's linear in each quantization, a tensor each: the weight, then its state (docs/methods.md#bits-per-weight)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.predict.rules import storage_of

if TYPE_CHECKING:
    from pytest_llminfer.predict.rules import EngineRules

BLOCK = 64
"""Weights that share one absolute maximum in nf4 and fp4."""
NESTED_BLOCK = 256
"""Absolute maxima that share one of their own, where they are quantized too."""
GROUP = 128
"""Inputs that share one scale in gptq, awq and w4a16, unless the configuration says otherwise."""

BLOCKWISE = ("nf4", "fp4")
GROUPED = ("gptq", "awq", "w4a16")
ROWWISE = ("int8", "w8a8", "fp8")
LINEAR_FORMATS = (*BLOCKWISE, *GROUPED, *ROWWISE)
"""Quantizations that store the linears of the layers in another way, and leave embeddings, norms and the output matrix alone."""

_FLOAT = 4
_HALF = 2
_INDEX = 4
_SHAPE_TENSOR = 16
_CODEBOOK = 16 * _FLOAT
_NESTED_CODEBOOK = 256 * _FLOAT


@dataclass(frozen=True, slots=True)
class FormatOptions:
    """What a quantization leaves open.

    Attributes:
        double_quantized: Whether the absolute maxima of nf4 or fp4 are quantized too; None for the engine's usual choice.
        group_size: Inputs that share a scale in gptq, awq and w4a16; -1 for all of a row.
        scale_per: Of fp8, what has a scale of its own: ``tensor`` or ``channel`` (a row).
    """

    double_quantized: bool | None = None
    group_size: int = GROUP
    scale_per: str = "tensor"


DEFAULTS = FormatOptions()


def linear_tensors(rows: int, columns: int, *, quantization: str, options: FormatOptions = DEFAULTS) -> tuple[int, ...]:
    """Bytes of each tensor that holds a linear of ``rows`` outputs and ``columns`` inputs.

    nf4, fp4: two weights a byte, :func:`four_bit_state`. int8: a byte each, one fp32 scale a row (bitsandbytes' SCB).
    gptq: eight weights in an int32; a half-precision scale and a packed 4-bit zero for every group and output; ``g_idx``, the
    int32 group of every input. awq: the same without ``g_idx``. w4a16: symmetric, no zeros; the shape as two int64.
    w8a8: a byte each, one fp32 scale a row. fp8: a byte each, one fp32 scale a tensor or a row.

    Raises:
        UnsupportedError: a quantization whose storage is not known here.
        BadInputError: groups that do not divide the inputs.
    """
    elements = rows * columns
    if quantization in BLOCKWISE:
        return math.ceil(elements / 2), *four_bit_state(elements, double_quantized=bool(options.double_quantized))
    if quantization in ("int8", "w8a8"):
        return elements, _FLOAT * rows
    if quantization == "fp8":
        return elements, _FLOAT * (rows if options.scale_per == "channel" else 1)
    if quantization not in GROUPED:
        raise UnsupportedError(
            f"the storage of quantization {quantization!r} is not known here", f"use one of: {', '.join(LINEAR_FORMATS)}"
        )
    size = columns if options.group_size == -1 else options.group_size
    if size < 1 or columns % size:
        raise BadInputError(
            f"groups of {options.group_size} do not divide the {columns} inputs of a linear; give another group size"
        )
    groups = columns // size
    packed, scales, zeros = elements // 2, _HALF * groups * rows, groups * rows // 2
    if quantization == "w4a16":
        return packed, scales, _SHAPE_TENSOR
    return (packed, scales, zeros, _INDEX * columns) if quantization == "gptq" else (packed, scales, zeros)


def four_bit_state(elements: int, *, double_quantized: bool) -> tuple[int, ...]:
    """Bytes of the state that bitsandbytes keeps of ``elements`` 4-bit weights, a tensor each.

    Plain: one fp32 maximum a block, a codebook of 16 fp32. Double: one uint8 a block, the same codebook, an fp32 offset, one
    fp32 maximum for 256 blocks, a codebook of 256 fp32. Every weight has its own copy of the codebooks.
    """
    blocks = math.ceil(elements / BLOCK)
    if not double_quantized:
        return _FLOAT * blocks, _CODEBOOK
    return blocks, _CODEBOOK, _FLOAT, _FLOAT * math.ceil(blocks / NESTED_BLOCK), _NESTED_CODEBOOK


def is_double(quantization: str, engine: EngineRules, options: FormatOptions = DEFAULTS) -> bool | None:
    """Whether the absolute maxima of a 4-bit format are quantized too; None where that has no meaning.

    transformers cells ask for it with nf4 and not with fp4. vLLM unpacks them at load time (``dequantize_dq`` of its
    bitsandbytes loader): 4.5 bits a weight in memory, whatever the checkpoint has.
    """
    if quantization not in BLOCKWISE:
        return None
    if options.double_quantized is not None:
        return options.double_quantized
    return quantization in storage_of(engine).nested_scales
