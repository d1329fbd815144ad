"""What two small models hold in memory, every number written down here and none predicted: what the layout checks must pass."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Layout, Parameter

SHAPE = ModelShape("llama", layers=12, hidden=64, heads=2, kv_heads=1, head_dim=32, intermediate=96, vocab=50, tied=True)
SPLIT = ModelShape("llama", layers=4, hidden=256, heads=8, kv_heads=2, head_dim=64, intermediate=768, vocab=1000, tied=False)
BOOK = ("float32", 64)
DOUBLE = (BOOK, ("float32", 4), ("float32", 4), ("float32", 1024))
# A linear of SHAPE: where it stands, rows and columns.
LINEARS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
# What bitsandbytes registers of a linear of so many rows and columns: the tensor, and dtype and bytes of each tensor of its state.
STORED: dict[str, dict[tuple[int, int], Parameter]] = {
    "none": {
        (64, 64): Parameter("", "bfloat16", (64, 64), (64, 64), 8192),
        (32, 64): Parameter("", "bfloat16", (32, 64), (32, 64), 4096),
        (96, 64): Parameter("", "bfloat16", (96, 64), (96, 64), 12288),
        (64, 96): Parameter("", "bfloat16", (64, 96), (64, 96), 12288),
    },
    # A scale in float32 a row.
    "int8": {
        (64, 64): Parameter("", "int8", (64, 64), (64, 64), 4352, 256, "int8", state=(("float32", 256),)),
        (32, 64): Parameter("", "int8", (32, 64), (32, 64), 2176, 128, "int8", state=(("float32", 128),)),
        (96, 64): Parameter("", "int8", (96, 64), (96, 64), 6528, 384, "int8", state=(("float32", 384),)),
        (64, 96): Parameter("", "int8", (64, 96), (64, 96), 6400, 256, "int8", state=(("float32", 256),)),
    },
    # Two weights a byte. Blocks of 64 with an absolute maximum in 8 bits, a codebook of 16; of those maxima, in one block of 256: a
    # maximum, an offset and a codebook of 256.
    "nf4": {
        (64, 64): Parameter(
            "", "uint8", (64, 64), (2048, 1), 3208, 1160, "nf4", 64, double_quantized=True, state=(("uint8", 64), *DOUBLE)
        ),
        (32, 64): Parameter(
            "", "uint8", (32, 64), (1024, 1), 2152, 1128, "nf4", 64, double_quantized=True, state=(("uint8", 32), *DOUBLE)
        ),
        (96, 64): Parameter(
            "", "uint8", (96, 64), (3072, 1), 4264, 1192, "nf4", 64, double_quantized=True, state=(("uint8", 96), *DOUBLE)
        ),
        (64, 96): Parameter(
            "", "uint8", (64, 96), (3072, 1), 4264, 1192, "nf4", 64, double_quantized=True, state=(("uint8", 96), *DOUBLE)
        ),
    },
    # Absolute maxima in float32, and a codebook of 16.
    "fp4": {
        (64, 64): Parameter(
            "", "uint8", (64, 64), (2048, 1), 2368, 320, "fp4", 64, double_quantized=False, state=(("float32", 256), BOOK)
        ),
        (32, 64): Parameter(
            "", "uint8", (32, 64), (1024, 1), 1216, 192, "fp4", 64, double_quantized=False, state=(("float32", 128), BOOK)
        ),
        (96, 64): Parameter(
            "", "uint8", (96, 64), (3072, 1), 3520, 448, "fp4", 64, double_quantized=False, state=(("float32", 384), BOOK)
        ),
        (64, 96): Parameter(
            "", "uint8", (64, 96), (3072, 1), 3520, 448, "fp4", 64, double_quantized=False, state=(("float32", 384), BOOK)
        ),
    },
}


def held(quantization: str) -> list[Parameter]:
    """Every parameter of SHAPE in transformers, its numbers written down here and not predicted."""
    parameters = [
        Parameter("model.embed_tokens.weight", "bfloat16", (50, 64), (50, 64), 6400),
        Parameter("model.norm.weight", "bfloat16", (64,), (64,), 128),
    ]
    for layer in range(12):
        place = f"model.layers.{layer}"
        parameters += [replace(STORED[quantization][size], name=f"{place}.{name}.weight") for name, size in LINEARS.items()]
        parameters += [
            Parameter(f"{place}.{norm}.weight", "bfloat16", (64,), (64,), 128)
            for norm in ("input_layernorm", "post_attention_layernorm")
        ]
    return parameters


# What each of two tensor-parallel ranks holds of a layer of SPLIT: rows and columns. Of 8 heads
# and 2 KV heads of 64 each rank has half; a matrix that reads the split channels is split along its columns.
NORMS = {"input_layernorm": (256,), "post_attention_layernorm": (256,)}
APART: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (64, 256),
    "self_attn.v_proj": (64, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (384, 256),
    "mlp.up_proj": (384, 256),
    "mlp.down_proj": (256, 384),
}
FUSED: dict[str, tuple[int, ...]] = {
    "self_attn.qkv_proj": (384, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_up_proj": (768, 256),
    "mlp.down_proj": (256, 384),
}
HALVES: dict[str, dict[str, tuple[int, ...]]] = {"transformers": APART, "vllm": FUSED, "sglang": FUSED}


VOCABULARY = {"transformers": 500, "vllm": 512, "sglang": 512}
"""Rows of the embedding and of the output matrix a rank: vLLM and SGLang pad 1,000 tokens to 1,024, a multiple of 64."""


def held_by_two(engine: str) -> list[Layout]:
    """Two tensor-parallel ranks of SPLIT in bfloat16: matrices with contents of their own, norms alike."""
    ends = (VOCABULARY[engine], 256)
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens": ends, "lm_head": ends, "model.norm": (256,)}
    sizes |= {f"model.layers.{layer}.{name}": size for layer in range(4) for name, size in (HALVES[engine] | NORMS).items()}
    return [
        Layout(
            tuple(
                Parameter(f"{name}.weight", "bfloat16", size, size, 2 * math.prod(size), content=str(rank if len(size) > 1 else 0))
                for name, size in sizes.items()
            ),
            (),
            tp_rank=rank,
        )
        for rank in range(2)
    ]
