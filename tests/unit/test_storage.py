from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import loaded, profile
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.shape import ROLES, ModelShape
from pytest_llminfer.predict.declared_formats import find, formats, size
from pytest_llminfer.predict.layout import expected_layout
from pytest_llminfer.predict.rules import SAFETENSORS
from pytest_llminfer.spec import QUANTIZATIONS

LLAMA = ModelShape("llama", layers=2, hidden=128, heads=2, kv_heads=1, head_dim=64, intermediate=192, vocab=320, tied=True)
GPT2 = ModelShape.from_config({"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 90})


def stored(quantization: Any, shape: ModelShape = LLAMA, **options: Any) -> dict[Any, Any]:
    layout = expected_layout(shape=shape, dtype="bf16", quantization=quantization, engine=profile("transformers"), **options)
    return {weight.parameter.name: weight for weight in layout}


def test_every_quantization_that_is_declared_is_one_of_a_cell_and_names_roles_and_sizes_that_exist() -> None:
    declared_by = {holder: formats(holder) for holder in (SAFETENSORS, *loaded()) if holder.storage is not None}
    assert {name for each in declared_by.values() for name, _ in each} == set(QUANTIZATIONS) - {"none", "q4_0", "q4_k_m", "q8_0"}
    sizes = {"out": 640, "in": 768, "group": 128, "parts": 3}
    for holder, (name, device), declared in [(holder, *item) for holder, each in declared_by.items() for item in each.items()]:
        assert declared == find(name, holder, device)
        assert set(declared.roles) <= set(ROLES)
        rules = [part for rule in (*declared.tensors, *declared.double) for part in rule.shape]
        # SGLang keeps some tensors of nothing: those say so outright.
        assert all(size(part, sizes) > 0 for part in rules if part != "0")


@pytest.mark.parametrize(
    ("rule", "value"), [("in", 768), ("16", 16), ("in/8", 96), ("out*in/group/256", 1), ("in/500", 2), ("in / 8 * out", 960)]
)
def test_a_shape_rule_is_read_from_left_to_right_and_rounded_up(rule: str, value: int) -> None:
    assert size(rule, {"out": 10, "in": 768, "group": 128}) == value


@pytest.mark.parametrize("rule", ["", "in+8", "in*", "*in", "in//8", "rows", "group"])
def test_another_shape_rule_is_refused(rule: str) -> None:
    with pytest.raises(BadInputError, match=r"formats\.toml"):
        size(rule, {"out": 10, "in": 768})


def test_unquantized_weights_are_what_their_shapes_say() -> None:
    # Two heads of 64 and one KV head, 192 within the MLP.
    layer = {
        "input_layernorm": (128,),
        "self_attn.q_proj": (128, 128),
        "self_attn.k_proj": (64, 128),
        "self_attn.v_proj": (64, 128),
        "self_attn.o_proj": (128, 128),
        "post_attention_layernorm": (128,),
        "mlp.gate_proj": (192, 128),
        "mlp.up_proj": (192, 128),
        "mlp.down_proj": (128, 192),
    }
    shapes = {f"model.layers.{number}.{name}.weight": shape for number in (0, 1) for name, shape in layer.items()}
    shapes |= {"model.embed_tokens.weight": (320, 128), "model.norm.weight": (128,)}
    found = stored("none")
    assert {name: weight.parameter.shape for name, weight in found.items()} == shapes
    for name, weight in found.items():
        size = 2 * math.prod(shapes[name])
        assert (weight.parameter.dtype, weight.parameter.packing, weight.parameter.stored_bytes) == ("bfloat16", "", size)
        assert weight.tensors == (size,)


@pytest.mark.parametrize("quantization", ["int8", "nf4", "fp4"])
def test_only_linears_of_layers_are_quantized(quantization: str) -> None:
    packed = {name for name, weight in stored(quantization).items() if weight.parameter.packing}
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    assert packed == {f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in parts}


def test_int8_keeps_a_scale_for_every_output_row() -> None:
    weight = stored("int8")["model.layers.0.mlp.up_proj.weight"].parameter
    assert (weight.dtype, weight.shape, weight.stored_shape) == ("int8", (192, 128), (192, 128))
    assert (weight.state_bytes, weight.stored_bytes) == (4 * 192, 192 * 128 + 4 * 192)
    assert (weight.block_size, weight.double_quantized) == (None, None)


@pytest.mark.parametrize(("double", "state"), [(False, 4 * 384 + 64), (True, 384 + 64 + 4 + 2 * 4 + 1024)])
def test_four_bit_state_has_the_bytes_that_bitsandbytes_keeps(double: bool, state: int) -> None:
    weight = stored("nf4", double_quantized=double)["model.layers.1.mlp.down_proj.weight"].parameter
    assert (weight.dtype, weight.shape, weight.stored_shape) == ("uint8", (128, 192), (12288, 1))
    assert (weight.state_bytes, weight.stored_bytes, weight.block_size) == (state, 12288 + state, 64)
    assert weight.double_quantized is double


def test_unless_told_otherwise_nf4_quantizes_its_scales_and_fp4_does_not() -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    assert stored("nf4")[name].parameter.double_quantized is True
    assert stored("fp4")[name].parameter.double_quantized is False


def test_odd_sizes_are_rounded_up_to_whole_bytes_and_blocks() -> None:
    shape = ModelShape("llama", layers=1, hidden=7, heads=1, kv_heads=1, head_dim=9, intermediate=3, vocab=5, tied=True)
    weight = stored("fp4", shape)["model.layers.0.self_attn.q_proj.weight"].parameter
    assert (weight.stored_shape, weight.state_bytes) == ((32, 1), 4 + 64)


def test_gpt2_is_turned_round_when_it_is_quantized() -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    assert stored("none", GPT2)[name].parameter.shape == (64, 192)
    assert stored("int8", GPT2)[name].parameter.shape == (192, 64)
    assert stored("int8", GPT2)[name].parameter.state_bytes == 4 * 192


def test_tensors_add_up_to_the_weight() -> None:
    for quantization in ("none", "int8", "nf4", "fp4"):
        for weight in stored(quantization).values():
            assert sum(weight.tensors) == weight.parameter.stored_bytes


def test_an_unknown_quantization_is_a_visible_skip() -> None:
    with pytest.raises(UnsupportedError, match="how transformers stores quantization 'q4_0' on cpu is not known here"):
        stored("q4_0")


SIZES = [(256, 128), (100, 48), (7, 9), (2048, 130)]
IN_BITSANDBYTES = """
import itertools, json, sys, torch
from bitsandbytes.functional import quantize_4bit
found = []
for size, quantization, double in itertools.product(json.load(sys.stdin), ("nf4", "fp4"), (False, True)):
    packed, state = quantize_4bit(torch.ones(size), quant_type=quantization, blocksize=64, compress_statistics=double)
    tensors = [packed, state.absmax, state.code]
    if double:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    found.append([size, quantization, double, list(packed.shape), [tensor.nbytes for tensor in tensors]])
json.dump(found, sys.stdout)
"""


def test_the_state_is_that_of_the_real_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_BITSANDBYTES], input=json.dumps(SIZES), capture_output=True, text=True, check=False
    )
    if "No module named" in done.stderr and done.returncode:
        pytest.skip("bitsandbytes is not installed")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4 * len(SIZES)
    for (rows, columns), quantization, double, packed_shape, sizes in found:
        shape = ModelShape(
            "llama", layers=1, hidden=columns, heads=1, kv_heads=1, head_dim=rows, intermediate=1, vocab=1, tied=True
        )
        expected = stored(quantization, shape, double_quantized=double)["model.layers.0.self_attn.q_proj.weight"]
        assert (list(expected.parameter.stored_shape), list(expected.tensors)) == (packed_shape, sizes)
