"""The model of memory against lines that others have published, and against what was measured on GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_llminfer
from pytest_llminfer.checks.memory import weights_tolerance
from pytest_llminfer.errors import BadInputError, InvalidSpecError, UnsupportedError
from pytest_llminfer.memory_model.budget import DeviceBudget, sglang_pool
from pytest_llminfer.memory_model.buffers import rope_bytes
from pytest_llminfer.memory_model.formats import FormatOptions, linear_tensors
from pytest_llminfer.memory_model.kv import (
    BITS,
    KVGroup,
    bytes_per_token,
    concurrency,
    kv_groups,
    pool_blocks,
    sequence_bytes,
)
from pytest_llminfer.memory_model.weights import (
    FORMATS,
    allocated_bytes,
    bits_per_weight,
    bytes_by_role,
    held_weights,
    stored_bytes,
)
from pytest_llminfer.models.shape import ModelShape

GIB, MIB = 2**30, 2**20
SHAPES = Path(pytest_llminfer.__file__).parent / "models" / "shapes"
BASELINES = Path(__file__).resolve().parents[2] / "baselines"
INSTRUCT = {"max_position_embeddings": 32768}
"""Qwen2.5-7B-Instruct, whose logs are published, allows a quarter of the base model's positions."""


def bundled(name, **changes):
    config = json.loads((SHAPES / name / "config.json").read_text()) | changes
    return config, ModelShape.from_config(config)


def held(name, **cell):
    return held_weights(bundled(name)[1], **{"dtype": "bf16", **cell})[0]


@pytest.mark.parametrize(
    ("name", "cell", "gib"),
    [
        ("llama-3-8b", {}, 14.9575),
        ("llama-3-8b", {"quantization": "nf4"}, 5.3109),  # 5.3107 without the codebooks
        ("llama-3-8b", {"quantization": "int8"}, 8.4575 + 5.25 / 1024),
        ("llama-3-8b", {"quantization": "gptq"}, 5.3391),
        ("llama-3-8b", {"quantization": "awq"}, 5.3345),
        ("qwen2.5-7b", {}, 14.1852),
        ("qwen2.5-7b", {"quantization": "nf4", "options": FormatOptions(double_quantized=False)}, 5.4494),
        ("qwen2.5-7b", {"quantization": "nf4"}, 5.1661),
        ("qwen2.5-7b", {"quantization": "int8"}, 8.1080 + 5.3 / 1024),
        ("qwen2.5-7b", {"quantization": "awq"}, 5.1882),
        ("qwen2.5-7b", {"quantization": "fp8"}, 8.1080),
        ("qwen2.5-7b", {"quantization": "q4_k_m"}, 4.356),
        ("llama-3-8b", {"quantization": "q8_0"}, 7.947),
    ],
)
def test_stored_weights_are_the_published_ones(name, cell, gib):
    """METHODS 4.2, in GiB as printed there."""
    assert stored_bytes(held(name, **cell)) / GIB == pytest.approx(gib, abs=5e-4 if gib == round(gib, 3) else 2e-4)


@pytest.mark.parametrize(
    ("name", "engine", "changes", "gib"),
    [
        ("qwen2.5-7b", "transformers", {}, 14.2272),
        ("qwen2.5-7b", "vllm", INSTRUCT, 14.2487),  # logged
        ("llama-3.1-8b", "vllm", {}, 14.9888),  # logged: 32 MiB of rotary positions
        ("llama-3-8b", "vllm", {}, 14.9595),  # logged: 2 MiB of them
    ],
)
def test_allocated_weights_are_what_engines_log(name, engine, changes, gib):
    config, shape = bundled(name, **changes)
    allocated = allocated_bytes(held(name, engine=engine)) + rope_bytes(config, shape, engine=engine, dtype="bf16")
    assert allocated / GIB == pytest.approx(gib, abs=5e-5)


def test_the_rounding_of_qwen_is_57_mib_in_vllm():
    weights = held("qwen2.5-7b", engine="vllm")
    assert allocated_bytes(weights) - stored_bytes(weights) == pytest.approx(57 * MIB, abs=0.1 * MIB)


# tools/quantize/README.md of llama.cpp (commit 311c2c9), Llama-3.1-8B.
LLAMA_CPP = {
    "iq1_s": 2.0042, "iq1_m": 2.1460, "iq2_xxs": 2.3824, "iq2_xs": 2.5882, "iq2_s": 2.7403, "iq2_m": 2.9294, "iq3_xxs": 3.2548,
    "iq3_xs": 3.4977, "iq3_s": 3.6606, "iq3_m": 3.7628, "iq4_xs": 4.4597, "iq4_nl": 4.6818, "q2_k_s": 2.9697, "q2_k": 3.1593,
    "q3_k_s": 3.6429, "q3_k_l": 4.2979, "q4_k_s": 4.6672, "q4_k_m": 4.8944, "q5_k_s": 5.5704, "q5_k_m": 5.7036, "q6_k": 6.5633,
    "q8_0": 8.5008, "none": 16.0005,
}  # fmt: skip


@pytest.mark.parametrize("quantization", LLAMA_CPP)
def test_every_mixture_has_its_published_bits_per_weight(quantization):
    shape = bundled("llama-3.1-8b")[1]
    weights = held("llama-3.1-8b", engine="llamacpp", dtype="fp16", quantization=quantization)
    assert bits_per_weight(shape, weights) == pytest.approx(LLAMA_CPP[quantization], abs=5.1e-5)


def test_q4_k_m_of_qwen_has_its_bits_per_weight():
    assert bits_per_weight(bundled("qwen2.5-7b")[1], held("qwen2.5-7b", quantization="q4_k_m")) == pytest.approx(4.913, abs=5e-4)


@pytest.mark.parametrize(
    ("quantization", "options", "bits"),
    [
        ("nf4", FormatOptions(double_quantized=False), 4.5),
        ("nf4", FormatOptions(double_quantized=True), 4.126953),
        ("awq", FormatOptions(), 4.15625),
        ("awq", FormatOptions(group_size=64), 4.3125),
        ("awq", FormatOptions(group_size=32), 4.625),
        ("w4a16", FormatOptions(), 4.125),
        ("fp8", FormatOptions(), 8),
    ],
)
def test_a_large_linear_has_the_bits_of_its_format(quantization, options, bits):
    """METHODS 4.1; codebooks and shapes, which every weight has once, are below the tolerance."""
    sizes = linear_tensors(4096, 14336, quantization=quantization, options=options)
    assert 8 * sum(sizes) / (4096 * 14336) == pytest.approx(bits, abs=2e-4)


def test_scales_and_indices_have_their_bytes():
    assert linear_tensors(100, 256, quantization="int8") == (25600, 400)
    assert linear_tensors(100, 256, quantization="w8a8") == (25600, 400)
    assert linear_tensors(100, 256, quantization="gptq") == (12800, 400, 100, 1024)
    assert linear_tensors(100, 256, quantization="gptq", options=FormatOptions(group_size=-1)) == (12800, 200, 50, 1024)
    assert linear_tensors(100, 256, quantization="fp8", options=FormatOptions(scale_per="channel")) == (25600, 400)
    with pytest.raises(BadInputError, match="groups of 100 do not divide the 256 inputs"):
        linear_tensors(100, 256, quantization="awq", options=FormatOptions(group_size=100))
    with pytest.raises(UnsupportedError, match="'exl2'"):
        linear_tensors(100, 256, quantization="exl2")


def test_vllm_keeps_the_maxima_of_nf4_unpacked():
    """dequantize_dq of its loader: as much as without double quantization."""
    fused = stored_bytes(held("llama-3-8b", engine="vllm", quantization="nf4"))
    plain = stored_bytes(held("llama-3-8b", quantization="nf4", options=FormatOptions(double_quantized=False)))
    assert 0 < plain - fused < 32 * 3 * 64 + 1  # a codebook less for each matrix that is fused away


@pytest.mark.parametrize("quantization", FORMATS)
def test_roles_add_up_and_embeddings_keep_their_dtype(quantization):
    weights = held("llama-3-8b", quantization=quantization)
    roles = bytes_by_role(weights)
    assert sum(roles.values()) == stored_bytes(weights)
    if quantization in ("none", "nf4", "gptq", "awq", "int8", "fp8", "w8a8", "w4a16"):
        assert roles["embedding"] == roles["lm_head"] == 2 * 128256 * 4096


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8", "awq"])
def test_ranks_hold_the_model_together(tp, quantization):
    """Norms are held by all, and so are codebooks and a scale per tensor; everything else is dealt out."""
    whole = bytes_by_role(held("llama-3-8b", engine="vllm", quantization=quantization))
    part = bytes_by_role(held("llama-3-8b", engine="vllm", quantization=quantization, tp=tp))
    assert part["norm"] == whole["norm"]
    for role in ("embedding", "attention", "mlp", "lm_head"):
        assert part[role] * tp == pytest.approx(whole[role], rel=1e-4)


def test_gpt2_is_dealt_out_by_outputs_and_inputs_and_biases_of_the_latter_stay_whole():
    shape = bundled("gpt2")[1]
    whole, part = ({weight.name: sum(weight.tensors) for weight in held("gpt2", engine="vllm", tp=tp)} for tp in (1, 2))
    assert part["transformer.h.0.attn.c_attn.weight"] * 2 == whole["transformer.h.0.attn.c_attn.weight"]
    assert part["transformer.h.0.mlp.c_proj.weight"] * 2 == whole["transformer.h.0.mlp.c_proj.weight"]
    assert part["transformer.h.0.mlp.c_fc.bias"] * 2 == whole["transformer.h.0.mlp.c_fc.bias"]
    assert part["transformer.h.0.mlp.c_proj.bias"] == whole["transformer.h.0.mlp.c_proj.bias"] == 2 * shape.hidden


# METHODS 4.1 and 4.2: keys and values.
@pytest.mark.parametrize(("name", "per_token"), [("llama-3-8b", 131_072), ("qwen2.5-7b", 57_344), ("gpt2", 36_864)])
def test_a_token_takes_the_published_bytes(name, per_token):
    config, shape = bundled(name)
    groups = kv_groups(config, shape)
    assert bytes_per_token(groups, "bf16") == shape.kv_bytes_per_token("bf16") == per_token
    assert bytes_per_token(groups, "fp8") == per_token // 2
    assert bytes_per_token(groups, "q8_0") == per_token * 17 // 32


def test_more_ranks_than_kv_heads_hold_each_head_several_times():
    config, shape = bundled("qwen2.5-7b")
    groups = kv_groups(config, shape)
    assert [bytes_per_token(groups, "bf16", tp=tp) for tp in (1, 2, 4, 8)] == [57344, 28672, 14336, 14336]


def test_25626_blocks_are_12_51_sequences_of_32768():
    config, shape = bundled("qwen2.5-7b")
    groups = kv_groups(config, shape)
    assert f"{float(concurrency(25_626, groups, 32_768)):.2f}" == "12.51"
    pool = 25_626 * 16 * 57_344
    assert pool / GIB == pytest.approx(21.90, abs=5e-3)
    assert pool_blocks(pool, groups, "bf16") == pool_blocks(pool + 16 * 57_344 - 1, groups, "bf16") == 25_626


def test_24_gb_times_090_in_its_parts():
    """Llama-3.1-8B on a card of 23.65 GiB: 21.28 usable, 14.99 weights, 5.01 for keys and values, the rest 1.285 (METHODS 4.2)."""
    config, shape = bundled("llama-3.1-8b")
    weights = stored_bytes(held("llama-3.1-8b", engine="vllm")) + rope_bytes(config, shape, engine="vllm", dtype="bf16")
    rest = round(1.285 * GIB)
    budget = DeviceBudget(total=round(23.65 * GIB), utilization=0.9, weights=weights, activation_peak=rest)
    assert int(budget.usable / GIB * 100) / 100 == 21.28
    assert budget.kv_pool / GIB == pytest.approx(5.01, abs=5e-3)
    blocks = pool_blocks(round(5.01 * GIB), kv_groups(config, shape), "bf16")
    assert (blocks, blocks * 16) == (2565, 41_040)  # printed as 41,042: the pool in tokens, before whole blocks
    assert float(concurrency(blocks, kv_groups(config, shape), 8192)) == pytest.approx(5.0, abs=0.02)
    assert budget.fits
    assert not DeviceBudget(total=16 * GIB, utilization=0.9, weights=weights).fits


@given(
    total=st.integers(1, 2**38), share=st.floats(0.1, 1), parts=st.tuples(*[st.integers(0, 2**34)] * 4),
)  # fmt: skip
def test_the_parts_of_a_device_add_up(total, share, parts):
    budget = DeviceBudget(total, share, *parts)
    assert sum(parts) + budget.kv_pool == budget.usable
    assert total * share <= budget.usable <= total * share + 1


def test_sglang_leaves_the_dynamic_part_free():
    assert sglang_pool(free_before=100 * GIB, free_after=80 * GIB, mem_fraction_static=0.9) == pytest.approx(70 * GIB, abs=1)


def test_layers_with_a_window_keep_no_more_than_that():
    """Mistral-7B v0.1: all layers keep the latest 4096 tokens."""
    config, shape = bundled("mistral-7b")
    groups = kv_groups(config, shape)
    assert groups == (KVGroup(32, 8, 128, 4096),)
    assert sequence_bytes(groups, 4096, "bf16") == sequence_bytes(groups, 32_768, "bf16") == 4096 * 131_072
    assert sequence_bytes(groups, 17, "bf16", block=16) == 32 * 131_072
    assert concurrency(4096, groups, 32_768) == 16


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, {None: 28}),  # use_sliding_window is false
        ({"use_sliding_window": True, "max_window_layers": 20}, {None: 20, 131_072: 8}),
        ({"use_sliding_window": True, "max_window_layers": 28}, {None: 28}),
        ({"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"] * 14}, {None: 14, 131_072: 14}),
        ({"sliding_window": None, "use_sliding_window": True}, {None: 28}),
    ],
)
def test_which_layers_have_a_window_is_what_the_configuration_says(changes, windows):
    config, shape = bundled("qwen2.5-7b", **changes)
    groups = kv_groups(config, shape)
    assert {group.window: group.layers for group in groups} == windows


def test_concurrency_with_windows_counts_each_layer_by_itself():
    groups = (KVGroup(1, 1, 1), KVGroup(3, 1, 1, window=16))
    # 64 tokens: 4 blocks of the full layer and one of each of the three others, out of 4 layers' worth a block.
    assert float(concurrency(7, groups, 64)) == 7 * 4 / (4 + 3)


def test_what_is_no_window_or_dtype_is_said():
    with pytest.raises(BadInputError, match="sliding_window"):
        kv_groups(*bundled("mistral-7b", sliding_window="wide"))
    with pytest.raises(InvalidSpecError, match="unknown KV dtype 'int3'"):
        KVGroup(1, 1, 1).bytes_per_token("int3")
    with pytest.raises(UnsupportedError, match="known: none, nf4"):
        held("llama-3-8b", quantization="exl2")
    assert set(BITS) >= {"fp8", "bf16"}


# What was measured: committed records of H100 and H200, made by transformers and SGLang.
def recorded(path):
    return json.loads((BASELINES / path).read_text())["entries"]


def layout_bytes(entry):
    return sum(held["stored_bytes"] * len(held.get("layers", [0])) for group in entry["expected"].values() for held in group)


@pytest.mark.parametrize(
    ("name", "entry", "cell", "residual"),
    [
        ("llama-3-8b", "transformers-none-bf16-kv_bf16", {}, 0),
        ("llama-3-8b", "transformers-nf4-bf16-kv_bf16", {"quantization": "nf4"}, 0),
        ("llama-3-8b", "transformers-int8-bf16-kv_bf16", {"quantization": "int8"}, 0),
        ("qwen2.5-7b", "transformers-none-bf16-kv_bf16", {}, 0),
        ("qwen2.5-7b", "sglang-none-bf16-kv_bf16", {"engine": "sglang"}, 0),
    ],
)
def test_weights_measured_on_a_gpu_are_the_predicted_ones(name, entry, cell, residual):
    measured = layout_bytes(recorded(f"any/{name}-dummy/dtype_layout.json")[entry])
    assert measured - stored_bytes(held(name, **cell)) == residual


@pytest.mark.parametrize(
    ("folder", "name", "entry", "cell", "residual"),
    [
        # transformers 5 takes one segment for the whole model and cuts the tensors out of it: nothing is rounded up.
        ("nvidia-h100-80gb-hbm3-x1", "llama-3-8b", "", {}, 0),
        ("nvidia-h200-x1", "qwen2.5-7b", "", {}, 0),
        ("nvidia-h200-x2", "qwen2.5-7b", "-tp2", {"tp": 2, "plan": ("lm_head",)}, 0),
    ],
)
def test_the_load_peak_measured_on_a_gpu_is_weights_and_rotary_tables(folder, name, entry, cell, residual):
    config, shape = bundled(name)
    record = recorded(f"{folder}/{name}-dummy/memory_load_peak.json")[f"transformers-none-bf16-kv_bf16{entry}"]
    predicted = stored_bytes(held(name, **cell)) + rope_bytes(config, shape, engine="transformers", dtype="bf16")
    assert record["expected"]["peak_bytes"] - predicted == residual


@pytest.mark.parametrize(("quantization", "working_mib"), [("nf4", 103.05), ("int8", 183.95)])
def test_quantizing_on_a_gpu_needs_working_memory_on_top(quantization, working_mib):
    """The residual of the load peak: a matrix of 112 MiB in bf16 on its way, which is beyond the gate of weights."""
    entries = recorded("nvidia-h100-80gb-hbm3-x1/llama-3-8b-dummy/memory_load_peak.json")
    peak = entries[f"transformers-{quantization}-bf16-kv_bf16"]["expected"]["peak_bytes"]
    predicted = stored_bytes(held("llama-3-8b", quantization=quantization))
    assert (peak - predicted) / MIB == pytest.approx(working_mib, abs=0.01)
    assert peak - predicted > weights_tolerance(predicted)
