"""What each quantization makes of one linear, 768 inputs to 256 outputs in groups of 128, wherever it is held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import loaded, profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.predict.declared_formats import formats
from pytest_llminfer.predict.layout import expected_layout
from pytest_llminfer.predict.rules import FILES

SHAPE = ModelShape("llama", layers=1, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=768, vocab=64, tied=True)
DOWN = "model.layers.0.mlp.down_proj."

TURNED_ROUND = {
    name: {"weight": (dtype, (768, 256), 196608), "weight_scale": ("float32", (256, 1), 1024)}
    for name, dtype in (("w8a8", "int8"), ("fp8", "float8_e4m3fn"))
}
EXPECTED = {
    ("int8", "transformers"): {"weight": ("int8", (256, 768), 256 * 768 + 4 * 256)},
    ("nf4", "transformers"): {"weight": ("uint8", (98304, 1), 98304 + 3072 + 64 + 4 + 4 * 12 + 1024)},
    ("fp4", "transformers"): {"weight": ("uint8", (98304, 1), 98304 + 4 * 3072 + 64)},
    ("int8", "checkpoint"): {
        "weight": ("int8", (256, 768), 196608),
        "SCB": ("float32", (256,), 1024),
        "weight_format": ("uint8", (), 1),
    },
    **{
        (name, "checkpoint"): {
            "weight": ("uint8", (98304, 1), 98304),
            "weight.absmax": ("float32", (3072,), 12288),
            "weight.quant_map": ("float32", (16,), 64),
        }
        for name in ("nf4", "fp4")
    },
    ("gptq", "checkpoint"): {
        "qweight": ("int32", (96, 256), 98304),
        "qzeros": ("int32", (6, 32), 768),
        "scales": ("float16", (6, 256), 3072),
        "g_idx": ("int32", (768,), 3072),
    },
    ("awq", "checkpoint"): {
        "qweight": ("int32", (768, 32), 98304),
        "qzeros": ("int32", (6, 32), 768),
        "scales": ("bfloat16", (6, 256), 3072),
    },
    ("w8a8", "checkpoint"): {"weight": ("int8", (256, 768), 196608), "weight_scale": ("bfloat16", (256, 1), 512)},
    ("w4a16", "checkpoint"): {
        "weight_packed": ("int32", (256, 96), 98304),
        "weight_scale": ("bfloat16", (256, 6), 3072),
        "weight_shape": ("int64", (2,), 16),
    },
    ("fp8", "checkpoint"): {"weight": ("float8_e4m3fn", (256, 768), 196608), "weight_scale": ("bfloat16", (256, 1), 512)},
    ("gptq", "vllm-cpu"): {"qweight": ("int32", (16, 1536), 98304), "scales": ("bfloat16", (6, 256), 3072)},
    ("awq", "vllm-cpu"): {
        "qweight": ("int32", (16, 1536), 98304),
        "qzeros": ("int32", (6, 32), 768),
        "scales": ("bfloat16", (6, 256), 3072),
    },
    ("w8a8", "vllm-cpu"): {
        "weight": ("int8", (256, 768), 196608),
        "weight_scale": ("float32", (256, 1), 1024),
        "azp_adj": ("float32", (1, 256), 1024),
    },
    ("w4a16", "vllm-cpu"): {
        "weight_packed": ("int32", (16, 1536), 98304),
        "weight_scale": ("bfloat16", (6, 256), 3072),
        "weight_shape": ("int64", (2,), 16),
    },
    ("fp8", "vllm-cpu"): {"weight": ("float8_e4m3fn", (768, 256), 196608), "weight_scale": ("float32", (256, 1), 1024)},
    ("fp8", "vllm-cuda-fp8"): {"weight": ("float8_e4m3fn", (768, 256), 196608), "weight_scale": ("float32", (1,), 4)},
    ("nf4", "vllm-cuda"): {"weight": ("uint8", (98304, 1), 98304 + 4 * 3072 + 64)},
    ("gptq", "vllm-cuda"): {
        "qweight": ("int32", (96, 256), 98304),
        "qzeros": ("int32", (6, 32), 768),
        "scales": ("bfloat16", (6, 256), 3072),
        "g_idx": ("int32", (768,), 3072),
    },
    ("awq", "vllm-cuda"): {
        "qweight": ("int32", (96, 256), 98304),
        "qzeros": ("bfloat16", (6, 256), 3072),
        "scales": ("bfloat16", (6, 256), 3072),
    },
    ("w4a16", "vllm-cuda"): {
        "weight_packed": ("int32", (96, 256), 98304),
        "weight_scale": ("bfloat16", (6, 256), 3072),
        "weight_shape": ("int64", (2,), 16),
    },
    **{(name, f"{engine}-cuda"): TURNED_ROUND[name] for name in ("w8a8", "fp8") for engine in ("vllm", "sglang")},
    ("gptq", "sglang-cuda"): {
        "qweight": ("int32", (48, 512), 98304),
        "qzeros": ("int32", (0,), 0),
        "scales": ("bfloat16", (6, 256), 3072),
        **dict.fromkeys(("g_idx", "g_idx_sort_indices"), ("int32", (0,), 0)),
    },
    ("awq", "sglang-cuda"): {
        "qweight": ("int32", (48, 512), 98304),
        "qzeros": ("int32", (6, 32), 768),
        "scales": ("bfloat16", (6, 256), 3072),
        **dict.fromkeys(("g_idx", "g_idx_sort_indices"), ("int32", (0,), 0)),
    },
    ("w4a16", "sglang-cuda"): {
        "weight_packed": ("int32", (48, 512), 98304),
        "weight_scale": ("bfloat16", (6, 256), 3072),
        "weight_shape": ("int64", (2,), 16),
        **dict.fromkeys(("weight_zero_point", "weight_g_idx", "g_idx_sort_indices"), ("int32", (0,), 0)),
    },
    ("gptq", "transformers-cpu"): {
        "qweight": ("uint8", (256, 384), 98304),
        "qzeros": ("bfloat16", (6, 256), 3072),
        "scales": ("bfloat16", (6, 256), 3072),
        "g_idx": ("int32", (768,), 3072),
    },
    ("awq", "transformers-cpu"): {
        "qweight": ("uint8", (256, 384), 98304),
        "qzeros": ("bfloat16", (6, 256), 3072),
        "scales": ("bfloat16", (6, 256), 3072),
    },
    ("w8a8", "transformers-cpu"): {"weight": ("bfloat16", (256, 768), 393216), "weight_scale": ("bfloat16", (256, 1), 512)},
    ("w4a16", "transformers-cpu"): {
        "weight": ("bfloat16", (256, 768), 393216),
        "weight_scale": ("bfloat16", (256, 6), 3072),
        "weight_shape": ("int64", (2,), 16),
    },
    ("fp8", "transformers-cpu"): {"weight": ("bfloat16", (256, 768), 393216), "weight_scale": ("bfloat16", (256, 1), 512)},
}
"""Dtype, stored shape and bytes with attached state of each tensor, read from the checkpoints under assets/ and loaded models."""


def held_by(holder: str) -> dict[Any, Any]:
    """The engine or kind of files, and the device, of a word such as ``vllm-cuda``."""
    name, _, device = holder.partition("-")
    return {"engine": FILES[name] if name in FILES else profile(name), "device": device or "cpu"}


def linear(quantization: str, holder: str, shape: ModelShape = SHAPE, **options: Any) -> dict[Any, Any]:
    layout = expected_layout(shape=shape, dtype="bf16", quantization=quantization, **held_by(holder), **options)
    found = [weight.parameter for weight in layout if weight.parameter.name.startswith(DOWN)]
    return {each.name.removeprefix(DOWN): (each.dtype, each.stored_shape, each.stored_bytes) for each in found}


def test_every_declared_format_is_tested_here() -> None:
    holders = (*FILES.values(), *loaded())
    declared = {(name, each.name, device) for each in holders if each.storage is not None for name, device in formats(each)}
    assert {(name, holder.removesuffix("-any")) for name, engine, device in declared for holder in (f"{engine}-{device}",)} == set(
        EXPECTED
    )


@pytest.mark.parametrize(("quantization", "holder"), EXPECTED)
def test_a_linear_is_stored_as_declared(quantization: str, holder: str) -> None:
    assert linear(quantization, holder) == EXPECTED[quantization, holder]


@pytest.mark.parametrize(("quantization", "holder"), EXPECTED)
def test_everything_but_the_linears_keeps_the_models_dtype(quantization: str, holder: str) -> None:
    layout = expected_layout(shape=replace(SHAPE, tied=False), dtype="bf16", quantization=quantization, **held_by(holder))
    kept = [weight.parameter for weight in layout if "_proj." not in weight.parameter.name]
    assert [each.name.rpartition(".")[0].rpartition(".")[2] for each in kept] == [
        "embed_tokens",
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
        "lm_head",
    ]
    assert {each.dtype for each in kept} == {"bfloat16"}


def test_a_fused_linear_has_a_codebook_for_each_of_its_parts() -> None:
    layout = expected_layout(shape=SHAPE, dtype="bf16", quantization="nf4", engine=profile("vllm"), device="cuda-bitsandbytes")
    states = {weight.parameter.name.split(".")[-2]: weight.parameter.state for weight in layout if weight.parameter.state}
    assert states == {
        "qkv_proj": (("float32", 4 * 512 * 256 // 64), ("float32", 3 * 64)),
        "o_proj": (("float32", 4 * 256 * 256 // 64), ("float32", 64)),
        "gate_up_proj": (("float32", 4 * 1536 * 256 // 64), ("float32", 2 * 64)),
        "down_proj": (("float32", 4 * 256 * 768 // 64), ("float32", 64)),
    }


def test_what_a_checkpoint_brought_along_is_not_judged_by_what_the_engine_makes() -> None:
    of: dict[str, Any] = {"shape": SHAPE, "dtype": "bf16", "quantization": "fp8", "engine": profile("vllm")}
    assert expected_layout(**of, device="cuda-fp8")
    assert expected_layout(**of, device="cuda-compressed-tensors") == expected_layout(**of, device="cuda")
    assert expected_layout(**of, device="cuda-compressed-tensors") != expected_layout(**of, device="cuda-fp8")
    with pytest.raises(UnsupportedError, match="'fp8' on cuda is not known here"):
        expected_layout(**{**of, "engine": profile("transformers")}, device="cuda")


def test_groups_are_those_that_a_checkpoint_declares() -> None:
    assert linear("gptq", "checkpoint", group_size=64)["scales"] == ("float16", (12, 256), 6144)
    assert linear("w4a16", "checkpoint", group_size=-1)["weight_scale"] == ("bfloat16", (256, 1), 512)
    assert linear("w8a8", "checkpoint", group_size=64) == linear("w8a8", "checkpoint")
