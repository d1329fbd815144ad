"""What the ranks of a small split model hold, every size written down here and none predicted: what the rank checks must pass."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Layout, Parameter

Sizes = dict[str, tuple[int, ...]]

SPLIT = ModelShape("llama", layers=4, hidden=256, heads=8, kv_heads=2, head_dim=64, intermediate=768, vocab=1000, tied=False)
TIED_PAIR = ("lm_head.weight", "model.embed_tokens.weight")

# What a rank holds of a layer, by the number of tensor-parallel ranks: rows and columns. 8 heads of 64 are 512 rows of queries, 2
# KV heads 128 of keys and of values. A matrix that reads the split channels is split along its columns.
APART: dict[int, Sizes] = {
    1: {
        "self_attn.q_proj": (512, 256),
        "self_attn.k_proj": (128, 256),
        "self_attn.v_proj": (128, 256),
        "self_attn.o_proj": (256, 512),
        "mlp.gate_proj": (768, 256),
        "mlp.up_proj": (768, 256),
        "mlp.down_proj": (256, 768),
    },
    2: {
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (64, 256),
        "self_attn.v_proj": (64, 256),
        "self_attn.o_proj": (256, 256),
        "mlp.gate_proj": (384, 256),
        "mlp.up_proj": (384, 256),
        "mlp.down_proj": (256, 384),
    },
}
# qkv: queries, keys and values; with four ranks 128 + 64 + 64, since each of the two KV heads is held by two of them.
FUSED: dict[int, Sizes] = {
    1: {
        "self_attn.qkv_proj": (768, 256),
        "self_attn.o_proj": (256, 512),
        "mlp.gate_up_proj": (1536, 256),
        "mlp.down_proj": (256, 768),
    },
    2: {
        "self_attn.qkv_proj": (384, 256),
        "self_attn.o_proj": (256, 256),
        "mlp.gate_up_proj": (768, 256),
        "mlp.down_proj": (256, 384),
    },
    4: {
        "self_attn.qkv_proj": (256, 256),
        "self_attn.o_proj": (256, 128),
        "mlp.gate_up_proj": (384, 256),
        "mlp.down_proj": (256, 192),
    },
}
PARTS = {"transformers": APART, "vllm": FUSED, "sglang": FUSED}
NORMS: Sizes = {"input_layernorm": (256,), "post_attention_layernorm": (256,)}
VOCABULARY = {"transformers": {1: 1000, 2: 500}, "vllm": {1: 1024, 2: 512, 4: 256}, "sglang": {1: 1024, 2: 512, 4: 256}}
"""Rows of the embedding and of the output matrix a rank: vLLM and SGLang pad 1,000 tokens to 1,024, a multiple of 64."""
STAGES: dict[int, tuple[tuple[int, ...], ...]] = {1: ((0, 1, 2, 3),), 2: ((0, 1), (2, 3)), 4: ((0,), (1,), (2,), (3,))}
"""Layers of each pipeline stage."""

# The tensors of a linear of one of two ranks in vLLM on a CPU: dtype and stored shape. Groups have 128 inputs, so 256 inputs have
# two scales for an output and 384 three; an int32 holds eight weights, and the kernels' packing has 16 outputs in one row.
PACKED: dict[str, dict[str, dict[str, tuple[str, tuple[int, ...]]]]] = {
    "w8a8": {
        "self_attn.qkv_proj": {
            "weight": ("int8", (384, 256)),
            "weight_scale": ("float32", (384, 1)),
            "azp_adj": ("float32", (1, 384)),
        },
        "self_attn.o_proj": {
            "weight": ("int8", (256, 256)),
            "weight_scale": ("float32", (256, 1)),
            "azp_adj": ("float32", (1, 256)),
        },
        "mlp.gate_up_proj": {
            "weight": ("int8", (768, 256)),
            "weight_scale": ("float32", (768, 1)),
            "azp_adj": ("float32", (1, 768)),
        },
        "mlp.down_proj": {
            "weight": ("int8", (256, 384)),
            "weight_scale": ("float32", (256, 1)),
            "azp_adj": ("float32", (1, 256)),
        },
    },
    "w4a16": {
        "self_attn.qkv_proj": {
            "weight_packed": ("int32", (24, 512)),
            "weight_scale": ("bfloat16", (2, 384)),
            "weight_shape": ("int64", (2,)),
        },
        "self_attn.o_proj": {
            "weight_packed": ("int32", (16, 512)),
            "weight_scale": ("bfloat16", (2, 256)),
            "weight_shape": ("int64", (2,)),
        },
        "mlp.gate_up_proj": {
            "weight_packed": ("int32", (48, 512)),
            "weight_scale": ("bfloat16", (2, 768)),
            "weight_shape": ("int64", (2,)),
        },
        "mlp.down_proj": {
            "weight_packed": ("int32", (16, 768)),
            "weight_scale": ("bfloat16", (3, 256)),
            "weight_shape": ("int64", (2,)),
        },
    },
    "fp8": {
        "self_attn.qkv_proj": {"weight": ("float8_e4m3fn", (256, 384)), "weight_scale": ("float32", (384, 1))},
        "self_attn.o_proj": {"weight": ("float8_e4m3fn", (256, 256)), "weight_scale": ("float32", (256, 1))},
        "mlp.gate_up_proj": {"weight": ("float8_e4m3fn", (256, 768)), "weight_scale": ("float32", (768, 1))},
        "mlp.down_proj": {"weight": ("float8_e4m3fn", (384, 256)), "weight_scale": ("float32", (256, 1))},
    },
    "gptq": {
        "self_attn.qkv_proj": {"qweight": ("int32", (24, 512)), "scales": ("bfloat16", (2, 384))},
        "self_attn.o_proj": {"qweight": ("int32", (16, 512)), "scales": ("bfloat16", (2, 256))},
        "mlp.gate_up_proj": {"qweight": ("int32", (48, 512)), "scales": ("bfloat16", (2, 768))},
        "mlp.down_proj": {"qweight": ("int32", (16, 768)), "scales": ("bfloat16", (3, 256))},
    },
    "awq": {
        "self_attn.qkv_proj": {
            "qweight": ("int32", (24, 512)),
            "qzeros": ("int32", (2, 48)),
            "scales": ("bfloat16", (2, 384)),
        },
        "self_attn.o_proj": {"qweight": ("int32", (16, 512)), "qzeros": ("int32", (2, 32)), "scales": ("bfloat16", (2, 256))},
        "mlp.gate_up_proj": {
            "qweight": ("int32", (48, 512)),
            "qzeros": ("int32", (2, 96)),
            "scales": ("bfloat16", (2, 768)),
        },
        "mlp.down_proj": {"qweight": ("int32", (16, 768)), "qzeros": ("int32", (3, 32)), "scales": ("bfloat16", (3, 256))},
    },
}
PACKING = {
    "w8a8": "compressed-tensors",
    "w4a16": "compressed-tensors",
    "fp8": "compressed-tensors",
    "gptq": "auto_gptq",
    "awq": "auto_awq",
}
SPLIT_BY_INPUTS = ("self_attn.o_proj", "mlp.down_proj")
"""Linears of which both ranks hold every output, and so the same scales where an output has one."""
BYTES = {"bfloat16": 2, "float32": 4, "int8": 1, "float8_e4m3fn": 1, "int32": 4, "int64": 8}


def held_by_ranks(engine: str = "vllm", *, tp: int = 2, pp: int = 1, tied: bool = False, bias: bool = False) -> list[Layout]:
    """Every rank of SPLIT in bfloat16: parts with contents of their own, copies alike.

    tied: with the embedding as output matrix; the first and the last of several stages then hold it. bias: of queries, keys and
    values, fused as their matrices are.
    """
    ends, parts = (VOCABULARY[engine][tp], 256), PARTS[engine][tp]
    found = []
    for stage, layers in enumerate(STAGES[pp]):
        sizes: Sizes = {f"model.layers.{layer}.{name}.weight": size for layer in layers for name, size in (parts | NORMS).items()}
        if bias:
            sizes |= {f"model.layers.{layer}.self_attn.qkv_proj.bias": parts["self_attn.qkv_proj"][:1] for layer in layers}
        if stage == 0 or (tied and stage == pp - 1):
            sizes["model.embed_tokens.weight"] = ends
        if stage == pp - 1:
            sizes |= {"model.norm.weight": (256,)} | ({} if tied else {"lm_head.weight": ends})
        for rank in range(tp):
            parameters = [
                Parameter(name, "bfloat16", size, size, 2 * math.prod(size), content=str(rank if _is_part(name) and tp > 1 else 0))
                for name, size in sizes.items()
            ]
            pairs = (TIED_PAIR,) if tied and stage == pp - 1 else ()
            found.append(Layout(tuple(parameters), pairs, tp_rank=rank, pp_rank=stage))
    return found


def _is_part(name: str) -> bool:
    return "norm" not in name


def packed_on_ranks(quantization: str) -> list[Layout]:
    """Both ranks of SPLIT in vLLM on a CPU, its linears in a format of PACKED."""
    found = []
    for rank in held_by_ranks():
        parameters = [each for each in rank.parameters if "_proj." not in each.name]
        for layer in range(4):
            for name, tensors in PACKED[quantization].items():
                place = f"model.layers.{layer}.{name}"
                parameters += [
                    Parameter(
                        f"{place}.{tensor}",
                        dtype,
                        size,
                        size,
                        BYTES[dtype] * math.prod(size),
                        packing="" if (quantization, tensor) == ("w8a8", "weight") else PACKING[quantization],
                        content=str(0 if size[1:] == (1,) and name in SPLIT_BY_INPUTS else rank.tp_rank),
                    )
                    for tensor, (dtype, size) in tensors.items()
                ]
        found.append(replace(rank, parameters=tuple(parameters)))
    return found
