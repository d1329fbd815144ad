"""How bitsandbytes formats are asked for, and what keeps weights stored in one way, used or not."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig

from pytest_llminfer.checkpoints.quantization_config import PREQUANTIZED


def quantization_config(quantization: str) -> Any:
    """The ``BitsAndBytesConfig`` of a format, None for ``none`` and for what the checkpoint itself declares.

    lm_head and the embedding are not quantized.

    nf4 quantizes its scales too (double quantization), fp4 does not: the two cover both layouts that bitsandbytes has.
    Both compute in bf16.
    """
    if quantization in {"none", *PREQUANTIZED}:
        return None
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=quantization == "nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def keep_4bit_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at their first use.

    On a CPU with AVX512-BF16 it would drop the double quantization and round the scales to bf16: layout, memory and tokens
    would depend on the processor's generation, and on whether a token was generated before the layout was read.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def settle(model: Any, quantization: str) -> None:
    """Compute one token with a checkpoint that came quantized: its weights are repacked or decompressed at their first use.

    gptqmodel's kernel for CPUs turns the packed weights round and the zeros into numbers; compressed-tensors decompresses to the
    model's dtype. Layout and memory would depend on whether a token was generated before they were read.
    """
    if quantization in PREQUANTIZED:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)
