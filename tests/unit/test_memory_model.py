"""Weights in the model of memory, against lines that others have published and against what was measured on GPUs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.families.memory.check import weights_tolerance
from pytest_llminfer.predict.buffers import rope_bytes
from pytest_llminfer.predict.formats import FormatOptions, linear_tensors
from pytest_llminfer.predict.weights import FORMATS, allocated_bytes, bits_per_weight, bytes_by_role, stored_bytes
from tests.support.bundled_shapes import GIB, MIB, bundled, held
from tests.support.paths import BASELINES

INSTRUCT = {"max_position_embeddings": 32768}
"""Qwen2.5-7B-Instruct, whose logs are published, allows a quarter of the base model's positions."""


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
def test_stored_weights_are_the_published_ones(name: str, cell: Any, gib: float) -> None:
    """In GiB, as docs/methods.md#published-log-lines has them."""
    assert stored_bytes(held(name, **cell)) / GIB == pytest.approx(gib, abs=5e-4 if gib == round(gib, 3) else 2e-4)


@pytest.mark.parametrize(
    ("name", "engine", "changes", "gib"),
    [
        ("qwen2.5-7b", "transformers", {}, 14.2272),
        ("llama-3-8b", "transformers", {"quantization": "nf4"}, 5.3111),
        ("qwen2.5-7b", "vllm", INSTRUCT, 14.2487),  # logged
        ("llama-3.1-8b", "vllm", {}, 14.9888),  # logged: 32 MiB of rotary positions
        ("llama-3-8b", "vllm", {}, 14.9595),  # logged: 2 MiB of them
    ],
)
def test_allocated_weights_are_what_engines_log(name: str, engine: str, changes: Any, gib: float) -> None:
    cell = {"quantization": changes.get("quantization", "none"), "engine": engine}
    config, shape = bundled(name, **{key: value for key, value in changes.items() if key != "quantization"})
    allocated = allocated_bytes(held(name, **cell)) + rope_bytes(config, shape, engine=profile(engine), dtype="bf16")
    assert allocated / GIB == pytest.approx(gib, abs=5e-5)


def test_the_rounding_of_qwen_is_57_mib_in_vllm() -> None:
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
def test_every_mixture_has_its_published_bits_per_weight(quantization: str) -> None:
    shape = bundled("llama-3.1-8b")[1]
    weights = held("llama-3.1-8b", engine="llamacpp", dtype="fp16", quantization=quantization)
    assert bits_per_weight(shape, weights) == pytest.approx(LLAMA_CPP[quantization], abs=5.1e-5)


def test_q4_k_m_of_qwen_has_its_bits_per_weight() -> None:
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
def test_a_large_linear_has_the_bits_of_its_format(quantization: str, options: FormatOptions, bits: float) -> None:
    """docs/methods.md#bits-per-weight; codebooks and shapes, which every weight has once, are below the tolerance."""
    sizes = linear_tensors(4096, 14336, quantization=quantization, options=options)
    assert 8 * sum(sizes) / (4096 * 14336) == pytest.approx(bits, abs=2e-4)


def test_scales_and_indices_have_their_bytes() -> None:
    assert linear_tensors(100, 256, quantization="int8") == (25600, 400)
    assert linear_tensors(100, 256, quantization="w8a8") == (25600, 400)
    assert linear_tensors(100, 256, quantization="gptq") == (12800, 400, 100, 1024)
    assert linear_tensors(100, 256, quantization="gptq", options=FormatOptions(group_size=-1)) == (12800, 200, 50, 1024)
    assert linear_tensors(100, 256, quantization="fp8", options=FormatOptions(scale_per="channel")) == (25600, 400)
    with pytest.raises(BadInputError, match="groups of 100 do not divide the 256 inputs"):
        linear_tensors(100, 256, quantization="awq", options=FormatOptions(group_size=100))
    with pytest.raises(UnsupportedError, match="'exl2'"):
        linear_tensors(100, 256, quantization="exl2")


def test_vllm_keeps_the_maxima_of_nf4_unpacked() -> None:
    """dequantize_dq of its loader: as much as without double quantization."""
    fused = stored_bytes(held("llama-3-8b", engine="vllm", quantization="nf4"))
    plain = stored_bytes(held("llama-3-8b", quantization="nf4", options=FormatOptions(double_quantized=False)))
    assert 0 < plain - fused < 32 * 3 * 64 + 1  # a codebook less for each matrix that is fused away


@pytest.mark.parametrize("quantization", FORMATS)
def test_roles_add_up_and_embeddings_keep_their_dtype(quantization: str) -> None:
    weights = held("llama-3-8b", quantization=quantization)
    roles = bytes_by_role(weights)
    assert sum(roles.values()) == stored_bytes(weights)
    if quantization in ("none", "nf4", "gptq", "awq", "int8", "fp8", "w8a8", "w4a16"):
        assert roles["embedding"] == roles["lm_head"] == 2 * 128256 * 4096


# The linears of Llama-3-8B's 32 layers: qkv of 6,144 x 4,096 and o of 4,096 x 4,096; three matrices of 14,336 x 4,096.
ATTENTION, MLP = 32 * (6144 + 4096) * 4096, 32 * 3 * 14336 * 4096


def by_role(quantization: str, tp: int) -> dict[str, float]:
    """Bytes of a rank by hand."""
    attention, mlp = {
        "none": (2 * ATTENTION, 2 * MLP),
        # Half a byte, and an absolute maximum in float32 for 64.
        "nf4": (ATTENTION * (1 / 2 + 4 / 64), MLP * (1 / 2 + 4 / 64)),
        "fp8": (ATTENTION, MLP),
        # Half a byte; for a group of 128 inputs a zero of half a byte and a scale of two.
        "awq": (ATTENTION * (1 / 2 + 2.5 / 128), MLP * (1 / 2 + 2.5 / 128)),
    }[quantization]
    ends = 2 * 128_256 * 4096
    return {"embedding": ends / tp, "attention": attention / tp, "norm": 2 * 65 * 4096, "mlp": mlp / tp, "lm_head": ends / tp}


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("quantization", ["none", "nf4", "fp8", "awq"])
def test_a_rank_holds_its_share_of_every_role_and_all_norms(tp: int, quantization: str) -> None:
    """Codebooks and a scale per tensor, which every rank holds too, are below the tolerance."""
    found = bytes_by_role(held("llama-3-8b", engine="vllm", quantization=quantization, tp=tp))
    assert found == pytest.approx(by_role(quantization, tp), rel=1e-4)
    assert found != pytest.approx(by_role(quantization, 2 * tp), rel=1e-4)


def test_gpt2_is_dealt_out_by_outputs_and_inputs_and_biases_of_the_latter_stay_whole() -> None:
    layer = "transformer.h.0."
    found = {weight.name.removeprefix(layer): sum(weight.tensors) for weight in held("gpt2", engine="vllm", tp=2)}
    # 768 channels, 2,304 outputs of queries, keys and values, 3,072 within the MLP; two bytes each.
    assert {name: found[name] for name in found if name.startswith(("attn", "mlp"))} == {
        "attn.c_attn.weight": 2 * 768 * 1152,
        "attn.c_attn.bias": 2 * 1152,
        "attn.c_proj.weight": 2 * 384 * 768,
        "attn.c_proj.bias": 2 * 768,
        "mlp.c_fc.weight": 2 * 768 * 1536,
        "mlp.c_fc.bias": 2 * 1536,
        "mlp.c_proj.weight": 2 * 1536 * 768,
        "mlp.c_proj.bias": 2 * 768,
    }


# What was measured: committed records of H100 and H200, made by transformers and SGLang.
def recorded(path: str) -> Any:
    return json.loads((BASELINES / path).read_text())["entries"]


def layout_bytes(entry: Any) -> Any:
    return sum(held["stored_bytes"] * len(held.get("layers", [0])) for group in entry["expected"].values() for held in group)


@pytest.mark.parametrize(
    ("name", "entry", "cell", "residual"),
    [
        ("llama-3-8b", "transformers-none-auto-kv_auto", {}, 0),
        ("llama-3-8b", "transformers-nf4-auto-kv_auto", {"quantization": "nf4"}, 0),
        ("llama-3-8b", "transformers-int8-auto-kv_auto", {"quantization": "int8"}, 0),
        ("qwen2.5-7b", "transformers-none-auto-kv_auto", {}, 0),
        ("qwen2.5-7b", "sglang-none-auto-kv_auto", {"engine": "sglang"}, 0),
    ],
)
def test_weights_measured_on_a_gpu_are_the_predicted_ones(name: str, entry: str, cell: Any, residual: int) -> None:
    measured = layout_bytes(recorded(f"any/{name}-dummy/dtype_layout.json")[entry])
    assert measured - stored_bytes(held(name, **cell)) == residual


@pytest.mark.parametrize(
    ("folder", "name", "entry", "cell", "residual"),
    [
        # transformers 5 takes one segment for the whole model and cuts the tensors out of it: nothing is rounded up, but for two
        # tables of 256 bytes, which the allocator counts as 512 each.
        ("nvidia-h100-80gb-hbm3-x1", "llama-3-8b", "", {}, 512),
        ("nvidia-h200-x1", "qwen2.5-7b", "", {}, 512),
        ("nvidia-h200-x2", "qwen2.5-7b", "-tp2", {"tp": 2, "plan": ("lm_head",)}, 512),
    ],
)
def test_the_load_peak_measured_on_a_gpu_is_weights_and_rotary_tables(
    folder: str, name: str, entry: str, cell: Any, residual: int
) -> None:
    config, shape = bundled(name)
    record = recorded(f"{folder}/{name}-dummy/memory_load_peak.json")[f"transformers-none-auto-kv_auto{entry}"]
    predicted = stored_bytes(held(name, **cell)) + rope_bytes(config, shape, engine=profile("transformers"), dtype="bf16")
    assert record["expected"]["peak_bytes"] - predicted == residual


@pytest.mark.parametrize(
    ("folder", "name", "cell", "engine"),
    [
        ("nvidia-h200-x1", "llama-3-8b", "transformers-none-auto-kv_auto", "transformers"),
        ("nvidia-h200-x1", "llama-3-8b", "transformers-nf4-auto-kv_auto", "transformers"),
        ("nvidia-h200-x1", "llama-3-8b", "vllm-none-auto-kv_auto", "vllm"),
        ("nvidia-h200-x1", "llama-3-8b", "sglang-none-auto-kv_auto", "sglang"),
    ],
)
def test_rotary_tables_are_those_that_were_measured_on_a_gpu(folder: str, name: str, cell: str, engine: str) -> None:
    """transformers to the byte; vLLM's attention registers 16 bytes a layer, SGLang keeps 256 rows more."""
    config, shape = bundled(name)
    lines = recorded(f"{folder}/{name}-dummy/memory_profile.json")[cell]["expected"]["lines"]
    (measured,) = [line["measured"] for line in lines if line["line"] == "buffers"]
    more = {"transformers": 0, "vllm": 16 * shape.layers, "sglang": 256 * 4 * shape.head_dim}[engine]
    assert rope_bytes(config, shape, engine=profile(engine), dtype="bf16") + more == measured


@pytest.mark.parametrize(("quantization", "working_mib"), [("nf4", 103.05), ("int8", 183.95)])
def test_quantizing_on_a_gpu_needs_working_memory_on_top(quantization: str, working_mib: float) -> None:
    """The residual of the load peak: a matrix of 112 MiB in bf16 on its way, which is beyond the gate of weights."""
    entries = recorded("nvidia-h100-80gb-hbm3-x1/llama-3-8b-dummy/memory_load_peak.json")
    peak = entries[f"transformers-{quantization}-auto-kv_auto"]["expected"]["peak_bytes"]
    predicted = stored_bytes(held("llama-3-8b", quantization=quantization))
    assert (peak - predicted) / MIB == pytest.approx(working_mib, abs=0.01)
    assert peak - predicted > weights_tolerance(predicted)
