"""How vLLM, SGLang and llama.cpp hold a model: fused matrices, a vocabulary filled up to whole blocks, types of GGUF files."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.layout.check import check_layout
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.layout import Parameter
from pytest_llminfer.predict.layout import expected_layout, held_weights
from pytest_llminfer.verdict import Outcome

LLAMA = ModelShape("llama", layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512, vocab=1000, tied=False)
GPT2 = ModelShape.from_config({"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 90})
LAYER = "model.layers.2."
FUSED_LAYER = {
    "self_attn.qkv_proj.weight": (256 + 128 + 128, 256),
    "self_attn.o_proj.weight": (256, 256),
    "mlp.gate_up_proj.weight": (1024, 256),
    "mlp.down_proj.weight": (256, 512),
    "input_layernorm.weight": (256,),
    "post_attention_layernorm.weight": (256,),
}
SINGLE_LAYER = {
    "self_attn.q_proj.weight": (256, 256),
    "self_attn.k_proj.weight": (128, 256),
    "self_attn.v_proj.weight": (128, 256),
    "self_attn.o_proj.weight": (256, 256),
    "mlp.gate_proj.weight": (512, 256),
    "mlp.up_proj.weight": (512, 256),
    "mlp.down_proj.weight": (256, 512),
    "input_layernorm.weight": (256,),
    "post_attention_layernorm.weight": (256,),
}
GGML_BYTES = {"q8_0": (32, 34), "q4_k": (256, 144), "q6_k": (256, 210), "q5_0": (32, 22), "float32": (1, 4), "float16": (1, 2)}
fusing = pytest.mark.parametrize("engine", ["vllm", "sglang"])


def loaded(engine: Any, quantization: str = "none", shape: ModelShape = LLAMA, dtype: str = "bf16") -> list[Any]:
    weights = expected_layout(shape=shape, dtype=dtype, quantization=quantization, engine=profile(engine))
    return [weight.parameter for weight in weights]


def by_name(engine: Any, *arguments: Any, **options: Any) -> dict[Any, Any]:
    return {parameter.name: parameter for parameter in loaded(engine, *arguments, **options)}


def outcome(parameters: Any, engine: str, quantization: str = "none", shape: ModelShape = LLAMA, dtype: str = "bf16") -> Outcome:
    verdict = check_layout(
        parameters=parameters, shape=shape, dtype=dtype, quantization=quantization, tied=shape.tied_pairs, engine=profile(engine)
    )
    return verdict.outcome


def changed(parameters: Any, name: str, **fields: Any) -> list[Any]:
    assert name in {parameter.name for parameter in parameters}
    return [replace(parameter, **fields) if parameter.name == name else parameter for parameter in parameters]


@fusing
def test_what_is_multiplied_together_is_one_matrix(engine: Any) -> None:
    found = by_name(engine)
    assert {name.removeprefix(LAYER): found[name].shape for name in found if name.startswith(LAYER)} == FUSED_LAYER
    assert len(found) == 4 * len(FUSED_LAYER) + 3
    assert all(parameter.stored_shape == parameter.shape for parameter in found.values())
    assert found[f"{LAYER}self_attn.qkv_proj.weight"].stored_bytes == 2 * 512 * 256
    assert sum(parameter.stored_bytes for parameter in found.values()) == 2 * (LLAMA.parameter_count + 2 * 24 * 256)


@fusing
def test_biases_are_fused_with_their_matrices(engine: Any) -> None:
    found = by_name(engine, shape=replace(LLAMA, architecture="qwen2", qkv_bias=True, tied=True))
    assert found[f"{LAYER}self_attn.qkv_proj.bias"].shape == (512,)
    assert [name for name in found if name.endswith(".bias")] == [f"model.layers.{n}.self_attn.qkv_proj.bias" for n in range(4)]
    assert "lm_head.weight" not in found


@fusing
@pytest.mark.parametrize(("vocab", "rows"), [(1, 64), (64, 64), (65, 128), (1000, 1024), (1024, 1024)])
def test_the_vocabulary_is_filled_up_to_whole_blocks(engine: Any, vocab: int, rows: int) -> None:
    found = by_name(engine, shape=replace(LLAMA, vocab=vocab))
    assert {found[name].shape for name in ("model.embed_tokens.weight", "lm_head.weight")} == {(rows, 256)}


@pytest.mark.parametrize(("engine", "shape"), [("transformers", LLAMA), ("llamacpp", LLAMA), ("vllm", GPT2), ("sglang", GPT2)])
def test_all_others_hold_the_weights_of_the_model_one_by_one(engine: str, shape: ModelShape) -> None:
    assert held_weights(shape, profile(engine)) == shape.parameters()


@fusing
@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_a_quantization_that_is_not_known_of_an_engine_is_a_visible_skip(engine: Any, quantization: str) -> None:
    with pytest.raises(UnsupportedError, match=f"how {engine} stores quantization '{quantization}' on cpu is not known"):
        loaded(engine, quantization)


def plain(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(name, "bfloat16", shape, shape, 2 * math.prod(shape))


def written(layer: dict[str, tuple[int, ...]], vocabulary: int) -> list[Parameter]:
    """LLAMA unquantized, from sizes that stand in this file."""
    names = {f"model.layers.{number}.{name}": shape for number in range(4) for name, shape in layer.items()}
    ends = {"model.embed_tokens.weight": (vocabulary, 256), "lm_head.weight": (vocabulary, 256), "model.norm.weight": (256,)}
    return [plain(name, shape) for name, shape in (names | ends).items()]


@fusing
def test_a_fused_layout_that_is_wrong_fails(engine: Any) -> None:
    right = written(FUSED_LAYER, 1024)
    assert outcome(right, engine) is Outcome.PASS
    assert outcome(written(SINGLE_LAYER, 1000), "transformers") is Outcome.PASS
    assert outcome(written(SINGLE_LAYER, 1000), engine) is Outcome.FAIL, "nothing was fused"
    assert outcome(right, "transformers") is Outcome.FAIL, "fused where it should not be"
    unpadded = {"shape": (1000, 256), "stored_shape": (1000, 256), "stored_bytes": 2 * 1000 * 256}
    assert outcome(changed(right, "lm_head.weight", **unpadded), engine) is Outcome.FAIL
    without_values = {"shape": (384, 256), "stored_shape": (384, 256), "stored_bytes": 2 * 384 * 256}
    assert outcome(changed(right, f"{LAYER}self_attn.qkv_proj.weight", **without_values), engine) is Outcome.FAIL
    wide = changed(right, f"{LAYER}mlp.gate_up_proj.weight", dtype="float32", stored_bytes=4 * 1024 * 256)
    assert outcome(wide, engine) is Outcome.FAIL


def kinds(parameters: Any) -> dict[Any, Any]:
    """The dtype of every role of a layer and of what stands outside, by the layers that have it."""
    found: dict[Any, Any] = {}
    for parameter in parameters:
        prefix, _, rest = parameter.name.partition("model.layers.")
        layer, _, name = rest.partition(".")
        found.setdefault((name or prefix, parameter.dtype), []).append(layer)
    return {key: "".join(layers) for key, layers in found.items()}


MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
NORMS = {
    ("input_layernorm.weight", "float32"): "0123",
    ("post_attention_layernorm.weight", "float32"): "0123",
    ("model.norm.weight", "float32"): "",
}


@pytest.mark.parametrize(("quantization", "kind"), [("none", "float16"), ("q8_0", "q8_0")])
def test_a_gguf_file_has_one_type_of_matrix_and_norms_in_float32(quantization: str, kind: str) -> None:
    assert kinds(loaded("llamacpp", quantization, dtype="fp16")) == {
        **{(f"{name}.weight", kind): "0123" for name in MATRICES},
        ("model.embed_tokens.weight", kind): "",
        ("lm_head.weight", kind): "",
        **NORMS,
    }


def test_q4_k_m_is_wider_where_llama_cpp_makes_it_so() -> None:
    assert kinds(loaded("llamacpp", "q4_k_m")) == {
        **{(f"{name}.weight", "q4_k"): "0123" for name in MATRICES if name not in ("self_attn.v_proj", "mlp.down_proj")},
        ("self_attn.v_proj.weight", "q4_k"): "01",
        ("self_attn.v_proj.weight", "q6_k"): "23",
        ("mlp.down_proj.weight", "q4_k"): "01",
        ("mlp.down_proj.weight", "q6_k"): "23",
        ("model.embed_tokens.weight", "q4_k"): "",
        ("lm_head.weight", "q6_k"): "",
        **NORMS,
    }
    tied = by_name("llamacpp", "q4_k_m", shape=replace(LLAMA, tied=True))
    assert tied["model.embed_tokens.weight"].dtype == "q6_k", "it is the output matrix too"
    narrow = by_name("llamacpp", "q4_k_m", shape=replace(LLAMA, hidden=224))
    assert narrow[f"{LAYER}mlp.up_proj.weight"].dtype == "q5_0", "rows of 224 hold no whole block of 256"


WIDER = [f"model.layers.{number}.{name}.weight" for number in (2, 3) for name in ("self_attn.v_proj", "mlp.down_proj")]


def in_gguf(quantization: str) -> list[Parameter]:
    """LLAMA in a GGUF file, from the sizes and the blocks that stand in this file."""
    found = []
    for each in written(SINGLE_LAYER, 1000):
        kind = {"none": "float16", "q8_0": "q8_0", "q4_k_m": "q4_k"}[quantization]
        if "norm" in each.name:
            kind = "float32"
        elif quantization == "q4_k_m" and each.name in (*WIDER, "lm_head.weight"):
            kind = "q6_k"
        block, size = GGML_BYTES[kind]
        packed: dict[str, Any] = {} if block == 1 else {"packing": kind, "block_size": block}
        found.append(replace(each, dtype=kind, stored_bytes=math.prod(each.shape) // block * size, **packed))
    return found


@pytest.mark.parametrize("quantization", ["none", "q8_0", "q4_k_m"])
def test_bytes_of_a_gguf_file_are_those_of_whole_blocks(quantization: str) -> None:
    found = by_name("llamacpp", quantization, dtype="fp16")
    assert found == {each.name: each for each in in_gguf(quantization)}


@pytest.mark.parametrize("quantization", ["none", "q8_0", "q4_k_m"])
def test_a_gguf_layout_that_is_wrong_fails(quantization: str) -> None:
    right, name = in_gguf(quantization), f"{LAYER}self_attn.v_proj.weight"
    cell: dict[str, Any] = {"engine": "llamacpp", "quantization": quantization, "dtype": "fp16"}
    assert outcome(right, **cell) is Outcome.PASS
    assert outcome(right, "transformers" if quantization == "none" else "llamacpp") is Outcome.FAIL
    other = {"dtype": "q5_0", "packing": "q5_0", "block_size": 32, "stored_bytes": 128 * 256 // 32 * 22}
    assert outcome(changed(right, name, **other), **cell) is Outcome.FAIL
    assert outcome(changed(right, "model.norm.weight", dtype="bfloat16", stored_bytes=512), **cell) is Outcome.FAIL
    assert outcome(right[:-1], **cell) is Outcome.FAIL


def test_a_mixture_that_is_not_known_is_a_visible_skip() -> None:
    with pytest.raises(UnsupportedError, match="'nf4' is not known here"):
        loaded("llamacpp", "nf4")
