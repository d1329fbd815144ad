"""What a small model holds in memory, every number written down here and none predicted: what the layout check must pass."""

from __future__ import annotations

from dataclasses import replace

from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Parameter

SHAPE = ModelShape("llama", layers=12, hidden=64, heads=2, kv_heads=1, head_dim=32, intermediate=96, vocab=50, tied=True)
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


# The other choice of scales than the usual: in float32 for nf4, in 8 bits for fp4. The numbers are the other format's.
STORED |= {
    "nf4, plain scales": {size: replace(each, packing="nf4") for size, each in STORED["fp4"].items()},
    "fp4, quantized scales": {size: replace(each, packing="fp4") for size, each in STORED["nf4"].items()},
}
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBEDDING = Parameter("model.embed_tokens.weight", "bfloat16", (50, 64), (50, 64), 6400)


def held(quantization: str, *, tied: bool = True) -> list[Parameter]:
    """Every parameter of SHAPE in transformers, or of the same model with an output matrix of its own."""
    parameters = [EMBEDDING, Parameter("model.norm.weight", "bfloat16", (64,), (64,), 128)]
    parameters += [] if tied else [replace(EMBEDDING, name="lm_head.weight")]
    for layer in range(12):
        place = f"model.layers.{layer}"
        parameters += [replace(STORED[quantization][size], name=f"{place}.{name}.weight") for name, size in LINEARS.items()]
        parameters += [Parameter(f"{place}.{norm}.weight", "bfloat16", (64,), (64,), 128) for norm in NORMS]
    return parameters


# 64 + 32 + 32 rows of queries, keys and values, twice 96 of gate and up.
FUSED = {"self_attn.qkv_proj": (128, 64), "self_attn.o_proj": (64, 64), "mlp.gate_up_proj": (192, 64), "mlp.down_proj": (64, 96)}


def held_fused() -> list[Parameter]:
    """Every parameter of SHAPE in vLLM, unquantized; 50 tokens are filled up to a block of 64."""
    parameters = [
        Parameter("model.embed_tokens.weight", "bfloat16", (64, 64), (64, 64), 8192),
        Parameter("model.norm.weight", "bfloat16", (64,), (64,), 128),
    ]
    for layer in range(12):
        place = f"model.layers.{layer}"
        parameters += [
            Parameter(f"{place}.{name}.weight", "bfloat16", size, size, 2 * size[0] * size[1]) for name, size in FUSED.items()
        ]
        parameters += [Parameter(f"{place}.{norm}.weight", "bfloat16", (64,), (64,), 128) for norm in NORMS]
    return parameters
