"""Checkpoints on disk, judged by their headers: those under assets/ as they are, and with a fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.checkpoints.quantization_config import group_size, stored_format, variant
from pytest_llminfer.cli import main
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.layout.checkpoint import check_checkpoint, check_index
from pytest_llminfer.families.memory.check import predict_weights
from pytest_llminfer.models.stored import StoredModel, read_stored
from pytest_llminfer.verdict import Outcome, Verdict
from tests.support.faults import checkpoints
from tests.support.paths import ASSETS, REFERENCE
from tests.support.present import present

SAFETENSORS = ("awq", "fp8", "gptq", "w4a16", "w8a8")
MIXTURES = {"F16": "none", "Q8_0": "q8_0", "Q4_K_M": "q4_k_m"}
NORM = "model.layers.1.input_layernorm.weight"

# 3,145,728 weights of linears; the embedding, the output matrix and nine norms are 526,592.
BYTES = {
    "awq": {"int32": 1_585_152, "bfloat16": 1_053_184 + 49_152},
    "fp8": {"float8_e4m3fn": 3_145_728, "bfloat16": 1_053_184 + 20_480},
    "gptq": {"int32": 1_622_016, "bfloat16": 1_053_184, "float16": 49_152},
    "w4a16": {"int32": 1_572_864, "bfloat16": 1_053_184 + 49_152, "int64": 448},
    "w8a8": {"int8": 3_145_728, "bfloat16": 1_053_184 + 20_480},
}


# The same weights in blocks: q8_0 has 34 bytes for 32, q4_k 144 and q6_k 210 for 256. A mixture of 4 layers is wider in v_proj and
# down_proj of the last two, 2 x (32,768 + 196,608) weights, and in the output matrix of 262,144.
GGUF_BYTES = {
    "F16": {"float16": 2 * 3_670_016, "float32": 4 * 9 * 256},
    "Q8_0": {"q8_0": 3_670_016 // 32 * 34, "float32": 4 * 9 * 256},
    "Q4_K_M": {
        "q4_k": (3_670_016 - 720_896) // 256 * 144,
        "q6_k": 720_896 // 256 * 210,
        "float32": 4 * 9 * 256,
    },
}


def check(stored: StoredModel) -> Verdict:
    verdict, *index = check_checkpoint(stored)
    assert [each.outcome for each in index] == [Outcome.PASS] * (stored.index is not None)
    return verdict


def histogram(verdict: Verdict) -> dict[Any, Any]:
    prefix = "stored in "
    return {each.name.removeprefix(prefix): each.value for each in verdict.measurements if each.name.startswith(prefix)}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_bundled_checkpoint_is_stored_as_it_declares(name: str) -> None:
    stored = read_stored(ASSETS / name)
    assert (stored.quantization, stored.dtype, stored.holder) == (name, "bfloat16", "checkpoint")
    assert stored.group_size == (128 if name in {"awq", "gptq", "w4a16"} else None)
    verdict = check(stored)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    assert histogram(verdict) == BYTES[name]
    assert float(verdict.key.split()[0]) == pytest.approx(8 * sum(BYTES[name].values()) / 3_672_320, abs=1e-3)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_bundled_gguf_file_holds_the_types_that_it_names(mixture: str) -> None:
    stored = read_stored(ASSETS / "gguf" / f"reference-{mixture}.gguf")
    assert stored.quantization == MIXTURES[mixture]
    verdict = check(stored)
    assert (verdict.outcome, verdict.details) == (Outcome.PASS, ())
    assert histogram(verdict) == GGUF_BYTES[mixture]


def test_the_unquantized_model_is_stored_as_it_declares() -> None:
    verdict = check(read_stored(REFERENCE))
    assert verdict.outcome is Outcome.PASS
    assert histogram(verdict) == {"bfloat16": 7_344_640}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_layer_that_was_silently_left_in_16_bits_is_named(name: str, tmp_path: Path) -> None:
    verdict = check(read_stored(checkpoints.leave_a_layer_alone(ASSETS / name, tmp_path / name)))
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.details) == 1
    assert verdict.details[0].startswith(f"model.layers.2.mlp.down_proj.weight: left in bfloat16 instead of {name} (")


@pytest.mark.parametrize("name", [NORM, "model.embed_tokens.weight"])
@pytest.mark.parametrize("quantization", ["w8a8", "gptq"])
def test_a_tensor_that_was_widened_is_named(quantization: str, name: str, tmp_path: Path) -> None:
    verdict = check(read_stored(checkpoints.widen(ASSETS / quantization, tmp_path / "wide", name)))
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.details) == 1
    assert verdict.details[0].startswith(f"{name}: dtype float32 instead of bfloat16")


def test_groups_of_another_size_than_declared_fail(tmp_path: Path) -> None:
    verdict = check(read_stored(checkpoints.declare(ASSETS / "gptq", tmp_path / "gptq", group_size=64)))
    assert verdict.outcome is Outcome.FAIL
    assert "self_attn.q_proj.qzeros (and the same in 3 other layers): shape [2, 32] instead of [4, 32]" in str(verdict)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", ["gptq", "awq", "w4a16"])
def test_predicted_weights_are_the_bytes_on_disk_whatever_the_group_size(name: str, size: int, tmp_path: Path) -> None:
    """128 is that of the files as they are."""
    stored = read_stored(checkpoints.regroup(ASSETS / name, tmp_path / name, size) if size < 128 else ASSETS / name)
    predicted = predict_weights(
        engine=profile("transformers"), shape=stored.shape, dtype="bf16", quantization=name, group_size=size
    )
    held = sum(parameter.stored_bytes for parameter in stored.layout.parameters)
    assert (stored.group_size, predicted, check(stored).outcome) == (size, held, Outcome.PASS)
    # An int32 for each of the 9,216 inputs of 28 linears: GPTQ's alone.
    indices = sum(parameter.stored_bytes for parameter in stored.layout.parameters if parameter.name.endswith("g_idx"))
    assert indices == (36_864 if name == "gptq" else 0)


@pytest.mark.parametrize(("held", "named"), [("Q8_0", 15), ("F16", 15), ("F16", 7)])
def test_a_gguf_file_of_other_types_than_it_names_fails(held: str, named: int, tmp_path: Path) -> None:
    file = checkpoints.relabel(ASSETS / "gguf" / f"reference-{held}.gguf", tmp_path / "other.gguf", named)
    verdict = check(read_stored(file))
    assert verdict.outcome is Outcome.FAIL
    found, meant = {"Q8_0": "q8_0", "F16": "float16"}[held], {15: "q4_k", 7: "q8_0"}[named]
    assert f"model.layers.0.self_attn.q_proj.weight (and the same in 3 other layers): dtype {found} instead of {meant}" in str(
        verdict
    )


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("gptq", {"bits": 8}, "gptq of 8 bits"),
        ("gptq", {"lm_head": True}, "gptq with a quantized output matrix"),
        ("gptq", {"checkpoint_format": "marlin"}, "gptq in the format marlin"),
        ("awq", {"format": "gemv"}, "awq in the format gemv"),
        ("w8a8", {"config_groups": {"a": {"weights": {"num_bits": 8, "strategy": "tensor"}, "input_activations": {"num_bits": 8}}}},
         "w8a8 with a scale a tensor instead of a channel"),
        ("w4a16", {"config_groups": {"a": {"weights": {"num_bits": 4, "strategy": "group", "symmetric": False}}}},
         "w4a16 with zero points"),
        ("w8a8", {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_has_fp16_weight": True}, "int8 with weights"),
        ("w8a8", {"quant_method": "bitsandbytes", "bnb_4bit_quant_storage": "bfloat16"}, "fp4 in a storage of bfloat16"),
        ("w8a8", {"quant_method": "hqq"}, "how checkpoint stores quantization 'hqq'"),
    ],
)  # fmt: skip
def test_a_variant_that_is_not_declared_here_is_no_pass(name: str, changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=says):
        check(read_stored(checkpoints.declare(ASSETS / name, tmp_path / name, **changed)))


def test_a_configuration_without_quantization_declares_none() -> None:
    assert (stored_format(None), group_size(None), variant({})) == ("none", None, "")


def test_the_command_names_what_is_wrong_and_says_so_by_its_status(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["checkpoint", *(str(ASSETS / name) for name in SAFETENSORS)]) == 0
    assert capsys.readouterr().out.count("PASS: every parameter is stored") == 5
    faulty = checkpoints.leave_a_layer_alone(ASSETS / "w8a8", tmp_path / "w8a8")
    assert main(["checkpoint", str(ASSETS / "w8a8"), str(faulty), "--json"]) == 1
    assert [entry["outcome"] for entry in json.loads(capsys.readouterr().out)] == ["pass", "pass", "fail"]
    assert main(["checkpoint", str(ASSETS / "w8a8"), "--quantization", "w4a16"]) == 1
    assert "model.layers.0.self_attn.q_proj.weight_packed (and the same in 3 other layers): missing" in capsys.readouterr().out
    assert main(["checkpoint", str(tmp_path / "nothing")]) == 2
    assert main(["checkpoint", str(ASSETS / "w8a8"), "--quantization", "w9"]) == 2


def test_an_index_is_judged_by_the_files_that_it_names(tmp_path: Path) -> None:
    stored = read_stored(checkpoints.split(ASSETS / "w8a8", tmp_path / "shards"))
    layout, index = check_checkpoint(stored)
    assert (layout.outcome, index.outcome, index.key) == (Outcome.PASS, Outcome.PASS, "67 indexed")
    moved, made_up = "model.norm.weight", "model.layers.4.input_layernorm.weight"
    wrong = {**present(stored.index), moved: "elsewhere.safetensors", made_up: "elsewhere.safetensors"}
    verdict = check_index(indexed=wrong, stored=stored.files)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details == (
        f"{made_up} is in the index and in no file",
        f"{moved} lies in {stored.files[moved]}, the index says elsewhere.safetensors",
    )
    assert check_index(indexed={}, stored={}).outcome is Outcome.FAIL
