"""From a cell to vLLM's keyword arguments, for an installed vLLM that is described by names; none is imported here."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.vllm import variables
from pytest_llminfer.worker.backends.vllm.arguments import Arguments, Installed, build

FIELDS = frozenset(
    {
        "model", "dtype", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "load_format", "kv_cache_dtype",
        "quantization", "seed", "skip_tokenizer_init", "generation_config", "worker_extension_cls", "enforce_eager",
        "kv_cache_memory_bytes", "gpu_memory_utilization", "max_model_len", "max_num_seqs",
    }
)  # fmt: skip
CPU = Installed(
    FIELDS, frozenset({"auto", "float16", "bfloat16", "fp8", "fp8_e5m2"}), frozenset({"gptq", "awq", "fp8"}), on_cpu=True
)
GPU = replace(CPU, methods=CPU.methods | {"bitsandbytes"}, on_cpu=False)
PLAIN = {"model_type": "llama"}


def chosen(installed: Installed = CPU, configuration: Any = PLAIN, engine_args: Any = None, **cell: Any) -> dict[str, Any]:
    arguments = Arguments.read(engine_args or {}, installed.fields)
    return build(EngineSpec("vllm", **cell), "/models/a", arguments, installed, configuration)


def stored(**quantization: Any) -> dict[Any, Any]:
    return {**PLAIN, "quantization_config": quantization}


def compressed(bits: int, inputs: int | None = None, kind: str = "int") -> Any:
    group = {"weights": {"num_bits": bits, "type": kind}, "input_activations": inputs and {"num_bits": inputs}}
    return stored(quant_method="compressed-tensors", config_groups={"group_0": group})


def test_a_plain_cell_on_a_cpu() -> None:
    assert chosen() == {
        "model": "/models/a", "seed": 0, "skip_tokenizer_init": True, "generation_config": "vllm", "enforce_eager": True,
        "worker_extension_cls": "llminfer_vllm_extension.RankExtension", "kv_cache_memory_bytes": 1 << 30,
    }  # fmt: skip


def test_what_the_user_says_comes_before_the_defaults_of_the_backend() -> None:
    arguments = {"seed": 7, "enforce_eager": False, "gpu_memory_utilization": 0.3, "generation_config": "auto"}
    keywords = chosen(engine_args=arguments)
    assert {name: keywords[name] for name in arguments} == arguments
    assert "kv_cache_memory_bytes" not in keywords


def test_a_gpu_is_left_to_vllm() -> None:
    assert set(chosen(GPU)) == {"model", "seed", "skip_tokenizer_init", "generation_config", "worker_extension_cls"}


def test_the_cell_in_the_words_of_vllm() -> None:
    keywords = chosen(GPU, dtype="bf16", kv_dtype="fp8_e5m2", tp=2, pp=2, weights="dummy")
    expected = {
        "dtype": "bfloat16", "kv_cache_dtype": "fp8_e5m2", "tensor_parallel_size": 2, "pipeline_parallel_size": 2,
        "load_format": "dummy",
    }  # fmt: skip
    assert {name: keywords[name] for name in expected} == expected
    assert "kv_cache_dtype" not in chosen(dtype="fp32", kv_dtype="fp32")
    assert chosen(kv_dtype="bf16")["kv_cache_dtype"] == "bfloat16"


def test_a_version_that_lacks_a_name_is_not_given_it() -> None:
    older = replace(CPU, fields=FIELDS - {"generation_config", "kv_cache_memory_bytes"})
    assert not {"generation_config", "kv_cache_memory_bytes"} & set(chosen(older))
    with pytest.raises(UnsupportedError, match="no engine argument pipeline_parallel_size, which the cell vllm-pp2 needs"):
        chosen(replace(CPU, fields=FIELDS - {"pipeline_parallel_size"}), pp=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_model_length": 5}, r"unknown engine argument 'max_model_length' .*Did you mean 'max_model_len'"),
        ({"score_by_decod": True}, "Did you mean 'score_by_decode'"),
        ({"score_by_decode": 1}, "must be true or false, not 1"),
        ({"tensor_parallel_size": 2}, "the cell's to choose: use tp"),
        ({"model": "b"}, "the cell's to choose: use model"),
        ({"worker_extension_cls": "a.B"}, "set by this backend"),
    ],
)
def test_arguments_that_nothing_would_read_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        chosen(engine_args=arguments)


def test_what_the_cell_says_is_not_said_twice() -> None:
    with pytest.raises(BadInputError, match="the cell vllm-bf16 chooses dtype='bfloat16' already"):
        chosen(dtype="bf16", engine_args={"dtype": "float16"})
    assert chosen(engine_args={"dtype": "float16"})["dtype"] == "float16"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"dp": 2, "replication": "native"}, "own data parallelism is for its server"),
        ({"kv_dtype": "q4_0"}, r"no KV cache of q4_0; use one of: auto, bfloat16"),
        ({"kv_dtype": "fp32"}, "no KV cache of fp32"),
        ({"quantization": "nf4"}, "has no bitsandbytes"),
        ({"quantization": "fp8"}, "on GPUs only"),
        ({"quantization": "q8_0"}, "reads no GGUF"),
    ],
)
def test_what_this_build_cannot_do_is_unsupported(cell: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        chosen(**cell)


def test_bitsandbytes_is_nf4_or_what_the_checkpoint_is() -> None:
    assert chosen(GPU, quantization="nf4")["quantization"] == "bitsandbytes"
    for cell, message in [
        ({"quantization": "int8"}, "quantizes to nf4 .* not to int8"),
        ({"quantization": "fp4"}, "quantizes to nf4 .* not to fp4"),
        ({"quantization": "nf4", "weights": "dummy"}, "weights=dummy has none"),
    ]:
        with pytest.raises(UnsupportedError, match=message):
            chosen(GPU, **cell)
    with pytest.raises(UnsupportedError, match="not possible on a CPU"):
        chosen(replace(GPU, on_cpu=True), quantization="nf4")
    assert "quantization" not in chosen(GPU, stored(quant_method="bitsandbytes", load_in_8bit=True), quantization="int8")
    assert "quantization" not in chosen(
        GPU, stored(quant_method="bitsandbytes", load_in_4bit=True, bnb_4bit_quant_type="nf4"), quantization="nf4"
    )


@pytest.mark.parametrize(
    ("quantization", "configuration"),
    [
        ("gptq", stored(quant_method="gptq", bits=4)),
        ("awq", stored(quant_method="awq", bits=4)),
        ("w8a8", compressed(8, 8)),
        ("w4a16", compressed(4)),
        ("fp8", compressed(8, 8, "float")),
        ("fp8", stored(quant_method="fp8")),
    ],
)
def test_a_quantized_checkpoint_must_be_what_the_cell_names(quantization: str, configuration: Any) -> None:
    assert "quantization" not in chosen(configuration=configuration, quantization=quantization)
    with pytest.raises(BadInputError, match=rf"is quantized already; name the cell for what it is: quantization={quantization}"):
        chosen(configuration=configuration)
    other = "awq" if quantization != "awq" else "gptq"
    with pytest.raises(BadInputError, match=f"stored as {quantization}"):
        chosen(configuration=configuration, quantization=other)
    if quantization != "fp8":
        with pytest.raises(BadInputError, match="is not quantized, and vLLM does not"):
            chosen(quantization=quantization)


def test_a_model_that_is_fetched_is_left_to_vllm() -> None:
    assert "quantization" not in chosen(configuration=None, quantization="gptq")
    assert chosen(GPU, None, quantization="fp8")["quantization"] == "fp8"


def test_variables_are_set_only_where_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variables, "usable_cores", lambda: [0, 1, 2, 3, 8])
    one: dict[str, str] = {}
    many: dict[str, str] = {}
    two, given = {"OMP_NUM_THREADS": "7"}, {"VLLM_CPU_OMP_THREADS_BIND": "3"}
    variables.set_for_cpu(one, ranks=1)
    variables.set_for_cpu(two, ranks=2, eager=True)
    variables.set_for_cpu(given, ranks=2)
    variables.set_for_cpu(many, ranks=8)
    assert one == {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert two == {"OMP_NUM_THREADS": "7", "VLLM_CPU_OMP_THREADS_BIND": "0,1|2,3", "TORCHDYNAMO_DISABLE": "1"}
    assert given == {"VLLM_CPU_OMP_THREADS_BIND": "3"}
    assert many == {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def test_the_path_of_children_gets_one_folder_that_holds_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    environment = {"PYTHONPATH": "/theirs", "HF_HUB_OFFLINE": "0"}
    for _ in range(2):
        variables.set_before_import(environment, local=True)
    assert environment["PYTHONPATH"].split(":") == [str(variables.SHIM), "/theirs"]
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert sys.path == [str(variables.SHIM)]
    assert sorted(file.name for file in variables.SHIM.glob("*.py")) == ["__init__.py", "llminfer_vllm_extension.py"]
