"""Which part of each weight a rank holds, as ``shards.toml`` and the profiles declare it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.predict.layout import expected_rank_layouts
from pytest_llminfer.predict.ranks import expected_rank_weights
from pytest_llminfer.predict.shards import DEALT

SHAPE = ModelShape("llama", layers=4, hidden=256, heads=8, kv_heads=2, head_dim=64, intermediate=768, vocab=1000, tied=False)
ENDS = ("model.embed_tokens", "lm_head")
DOWN = "model.layers.2.mlp.down_proj.weight"
QKV = "model.layers.2.self_attn.qkv_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"
every_engine = pytest.mark.parametrize("engine", ["transformers", "vllm", "sglang"])


def cell(shape: ModelShape, engine: Any, quantization: str = "none") -> dict[Any, Any]:
    return {"shape": shape, "dtype": "bf16", "quantization": quantization, "engine": profile(engine)}


def loaded(
    engine: str = "vllm",
    tp: int = 2,
    pp: int = 1,
    quantization: str = "none",
    shape: ModelShape = SHAPE,
    plan: tuple[str, ...] = ENDS,
) -> list[Any]:
    return list(expected_rank_layouts(**cell(shape, engine, quantization), tp=tp, pp=pp, plan=plan).values())


def shapes(ranks: Any, name: str) -> list[Any]:
    return [each.parameter.shape for rank in ranks for each in rank if each.parameter.name == name]


def test_sglang_has_an_output_matrix_on_every_stage_of_a_llama() -> None:
    held = [sum(each.parameter.name == "lm_head.weight" for each in rank) for rank in loaded("sglang", tp=1, pp=2)]
    assert held == [1, 1]
    qwen = replace(SHAPE, architecture="qwen2", qkv_bias=True)
    held = [sum(each.parameter.name == "lm_head.weight" for each in rank) for rank in loaded("sglang", tp=1, pp=2, shape=qwen)]
    assert held == [0, 1]
    with pytest.raises(UnsupportedError, match="on which stages of pp=2 sglang keeps an embedding"):
        loaded("sglang", tp=1, pp=2, shape=replace(SHAPE, tied=True))


def test_the_rules_by_hand() -> None:
    ranks = loaded("transformers", shape=replace(SHAPE, qkv_bias=True, output_bias=True))
    layer = "model.layers.2."
    assert {name: shapes(ranks, f"{layer}{name}")[0] for name in ("self_attn.q_proj.weight", "self_attn.k_proj.weight")} == {
        "self_attn.q_proj.weight": (256, 256),
        "self_attn.k_proj.weight": (64, 256),
    }
    assert shapes(ranks, f"{layer}self_attn.o_proj.weight") == [(256, 256)] * 2
    assert shapes(ranks, f"{layer}self_attn.q_proj.bias") == [(256,)] * 2
    assert shapes(ranks, f"{layer}self_attn.o_proj.bias") == [(256,)] * 2, "added once, held by all"
    assert shapes(ranks, DOWN) == [(256, 384)] * 2
    assert shapes(ranks, NORM) == [(256,)] * 2
    assert shapes(ranks, "lm_head.weight") == [(500, 256)] * 2
    assert shapes(loaded("transformers", plan=()), "lm_head.weight") == [(1000, 256)] * 2, "the plan leaves it whole"
    fused = loaded("vllm")
    assert shapes(fused, QKV) == [(256 + 64 + 64, 256)] * 2
    assert shapes(fused, "lm_head.weight") == [(512, 256)] * 2, "1000 tokens filled up to 1024"


def test_kv_heads_are_held_several_times_where_there_are_more_ranks() -> None:
    assert shapes(loaded("vllm", tp=8), QKV) == [(64 + 64 + 64, 256)] * 8


def test_what_does_not_divide_leaves_the_last_rank_less() -> None:
    ranks = loaded("transformers", shape=replace(SHAPE, vocab=1001))
    assert shapes(ranks, "lm_head.weight") == [(501, 256), (500, 256)]


@every_engine
@pytest.mark.parametrize("tp", [2, 4, 8])
def test_the_declared_parts_are_the_model_once(engine: Any, tp: int) -> None:
    """The sizes of the parts add up to the whole's along the dimension that is dealt: no row or column is left out."""
    shape = replace(SHAPE, qkv_bias=True, output_bias=True, kv_heads=8)
    wholes = {each.parameter.name: each.parameter for each in expected_rank_layouts(**cell(shape, engine), tp=1, pp=1)[0, 0]}
    parts = expected_rank_layouts(**cell(shape, engine), tp=tp, pp=1, plan=ENDS)
    assert {rank for _, rank in parts} == set(range(tp))
    for name, whole in wholes.items():
        held = [each.parameter.shape for weights in parts.values() for each in weights if each.parameter.name == name]
        dealt = [axis for axis, size in enumerate(whole.shape) if held[0][axis] != size]
        word = name.split(".")[-2]
        copied = "norm" in word or name.endswith("o_proj.bias")
        assert len(dealt) == (0 if copied else 1), name
        assert len(held) == tp
        assert all(sum(one[axis] for one in held) == whole.shape[axis] for axis in dealt), name
        assert all(one[axis] == size for one in held for axis, size in enumerate(whole.shape) if axis not in dealt), name


def test_every_matrix_of_the_known_architectures_is_declared() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 90}
    for shape in (replace(SHAPE, qkv_bias=True), ModelShape.from_config(gpt2)):
        named = {weight.name.split(".")[-2] for weight in shape.parameters() if weight.role not in ("norm", "position")}
        assert named <= set(DEALT)


# Half of a layer: 256 + 64 + 64 rows of queries, keys and values, 256 columns of the output, 384 of the MLP; and two norms.
HALF_LAYER = (256 + 64 + 64 + 256) * 256 + 3 * 384 * 256 + 2 * 256


@pytest.mark.parametrize(("engine", "vocabulary"), [("transformers", 500), ("vllm", 512), ("sglang", 512)])
def test_bytes_of_a_rank_are_those_of_its_parts(engine: str, vocabulary: int) -> None:
    """By the layout and by the memory model. SGLang has the output matrix of a Llama on every stage."""
    ends, norm = vocabulary * 256, 256
    first = 2 * HALF_LAYER + ends + (ends if engine == "sglang" else 0)
    of_stages = {1: {0: 4 * HALF_LAYER + 2 * ends + norm}, 2: {0: first, 1: 2 * HALF_LAYER + ends + norm}}
    for pp, elements in of_stages.items():
        parallel = {**cell(SHAPE, engine), "tp": 2, "pp": pp, "plan": ENDS}
        assert expected_rank_weights(**parallel) == {stage: 2 * count for stage, count in elements.items()}
        for (stage, _), weights in expected_rank_layouts(**parallel).items():
            assert sum(each.parameter.stored_bytes for each in weights) == 2 * elements[stage]


IN_VLLM = {
    "w8a8": {"weight": (256, 384), "weight_scale": (256, 1), "azp_adj": (1, 256)},
    "w4a16": {"weight_packed": (16, 768), "weight_scale": (3, 256), "weight_shape": (2,)},
    "fp8": {"weight": (384, 256), "weight_scale": (256, 1)},
    "gptq": {"qweight": (16, 768), "scales": (3, 256)},
    "awq": {"qweight": (16, 768), "qzeros": (3, 32), "scales": (3, 256)},
}
"""Stored shapes of a rank's half of 768 inputs to 256 outputs, in groups of 128: read from vLLM 0.32 on a CPU with tp=2."""


@pytest.mark.parametrize("quantization", IN_VLLM)
def test_quantized_parts_are_those_of_vllm(quantization: str) -> None:
    stem = DOWN.removesuffix("weight")
    for rank in loaded(quantization=quantization):
        found = {
            each.parameter.name.removeprefix(stem): each.parameter.stored_shape
            for each in rank
            if each.parameter.name.startswith(stem)
        }
        assert found == IN_VLLM[quantization]
