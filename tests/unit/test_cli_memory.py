"""``llminfer memory``: what fits is said from the configuration alone, quickly, and bad names are refused in one line."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer import cli
from pytest_llminfer.models.files import SHAPES

GIB = 2**30
CHANNELS = {"strategy": "channel"}
ISSUE = ("llama-3-8b", "--quantization", "nf4", "--tp", "2", "--gpu", "H100 80GB", "--context", "8192", "--kv-dtype", "fp8")


@pytest.fixture
def llminfer(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(*arguments: Any, status: int = 0) -> str:
        assert cli.main(["memory", *arguments]) == status
        said = capsys.readouterr()
        assert (not said.err) == (status < 2)
        return said.out if status < 2 else said.err

    return run


def test_it_starts_within_a_second_and_imports_no_framework() -> None:
    code = (
        "import sys; from pytest_llminfer.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'vllm', 'sglang', 'llama_cpp', 'numpy', 'pytest'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code, "memory", *ISSUE], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1
    assert "maximum concurrency at 8,192 tokens" in done.stdout


def test_weights_tokens_and_concurrency_follow_from_the_configuration(llminfer: Callable[..., str]) -> None:
    found = json.loads(llminfer(*ISSUE, "--json"))
    # A rank holds half of the linears at 4.5 bits (vLLM unpacks double quantization) and half of both ends, each rounded up from
    # 501 to 502 MiB, and 2 MiB of positions.
    linears = 6_979_321_856 // 2
    assert found["weights_bytes"] == pytest.approx(linears * 4.5 / 8 + 2 * 502 * 2**20 + 2 * 65 * 4096 + 2 * 2**20, rel=1e-4)
    assert found["kv_bytes_per_token"] == 131_072 // 2 // 2
    assert found["kv_tokens"] == found["kv_pool_bytes"] // (16 * 32_768) * 16
    assert found["maximum_concurrency"] == round(found["kv_tokens"] / 8192, 2)
    left = found["usable_bytes"] - found["weights_bytes"] - found["non_torch_bytes"] - found["activation_peak_bytes"]
    assert left == found["kv_pool_bytes"]
    assert found["estimated"] == ["activation peak", "non-torch"]


def test_the_published_card_of_24_gb_leaves_5_01_gib(llminfer: Callable[..., str]) -> None:
    """23.65 GiB x 0.90, Llama-3.1-8B: 1.285 GiB of activations and the rest were logged (docs/methods.md#published-log-lines)."""
    arguments = ("llama-3.1-8b", "--gpu", "RTX 4090", "--utilization", "0.9", "--context", "8192")
    logged = ("--activation-mib", "1229", "--non-torch-mib", "87")
    found = json.loads(llminfer(*arguments, *logged, "--json"))
    assert found["usable_bytes"] / GIB == pytest.approx(21.285, abs=1e-3)
    assert found["kv_pool_bytes"] / GIB == pytest.approx(5.01, abs=5e-3)
    assert found["maximum_concurrency"] == pytest.approx(5.0, abs=0.02)
    assert found["estimated"] == []
    # What is estimated in their place comes within 10 % of it.
    estimated = json.loads(llminfer(*arguments, "--json"))
    assert estimated["kv_pool_bytes"] == pytest.approx(found["kv_pool_bytes"], rel=0.1)


def test_what_does_not_fit_is_said_and_ends_with_status_one(llminfer: Callable[..., str]) -> None:
    text = llminfer("qwen2.5-72b", "--gpu", "T4", status=1)
    assert "does not fit: the rest leaves nothing for keys and values" in text
    assert "does not fit: not one sequence of 131,072 tokens" in llminfer(
        "qwen2.5-72b", "--gpu", "B200", "--utilization", "0.8", status=1
    )
    assert "does not fit" not in llminfer("qwen2.5-72b", "--gpu", "H200", "--tp", "2")


def test_the_table_names_where_each_figure_is_from(llminfer: Callable[..., str]) -> None:
    text = llminfer("gpt2", "--gpu", "nvidia a10", "--engine", "transformers")
    assert "22.18 of A10 x 1 (modal-labs/modal-client#2797; OpenBMB/MiniCPM-V#640)" in text
    assert "an estimate: give what an engine has logged" in text
    assert "as given" in llminfer("gpt2", "--activation-mib", "10")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("llama-3-8c",), "unknown model 'llama-3-8c'; valid: gpt2, .* Did you mean 'llama-3-8b'"),
        (("gpt2", "--gpu", "H10O 80GB"), "unknown GPU 'H10O 80GB'; valid: A10, .* Did you mean 'H100 80GB'"),
        (("gpt2", "--gpu", "A100"), "unknown GPU 'A100'.* Did you mean 'A10"),
        (("gpt2", "--quantization", "q4_km"), "unknown quantization 'q4_km'.* Did you mean 'q4_k_m'"),
        (("gpt2", "--tp", "0"), "a positive whole number, not '0'"),
        (("gpt2", "--activation-mib", "-5"), "a whole number from 0 up, not '-5'"),
        (("llama-3-8b", "--quantization", "awq", "--group-size", "0"), "a positive whole number, not '0'"),
        (("gpt2", "--graphs-mib", "-1"), "a whole number from 0 up, not '-1'"),
        (("/no/such/model.gguf",), "there is no file /no/such/model.gguf"),
        (("gpt2", "--utilization", "1.5"), "utilization above 0 and at most 1"),
        (("gpt2", "--engine", "vlm"), "invalid choice: 'vlm'"),
        (("llama-3-8b", "--quantization", "awq", "--group-size", "100"), "groups of 100 do not divide the 4096 inputs"),
    ],
)
def test_a_bad_name_is_refused_in_one_line(llminfer: Callable[..., str], arguments: tuple[str, ...], said: str) -> None:
    error = llminfer(*arguments, status=2)
    assert len(error.splitlines()) == 1
    assert re.search(said, error), error


def test_what_an_engine_cannot_do_is_a_failure_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memory", "qwen2.5-72b", "--tp", "3"]) == 1
    assert (
        capsys.readouterr().err == "llminfer: vllm cannot split the 64 heads of this model over 3 ranks; use a tp that divides 64\n"
    )
    for arguments, said in (
        (("--engine", "llamacpp", "--tp", "2"), "llamacpp does not split a model over tensor-parallel ranks"),
        (("--kv-dtype", "q4_0"), "vllm has no KV cache of q4_0 here; use kv_dtype=bf16 or fp16 or fp8 or fp8_e5m2"),
        (("--engine", "transformers", "--kv-dtype", "fp8"), "transformers has no KV cache of fp8 here; use kv_dtype=bf16"),
        (("--engine", "sglang", "--quantization", "q4_k_m"), "sglang does not hold q4_k_m weights; only llama.cpp does"),
        (("--engine", "llamacpp", "--quantization", "awq"), "llamacpp does not hold awq weights; use a format of GGUF files"),
    ):
        assert cli.main(["memory", "llama-3-8b", *arguments]) == 1
        assert capsys.readouterr().err.startswith(f"llminfer: {said}")


def test_a_mixture_of_llamacpp_is_planned_in_llamacpp(llminfer: Callable[..., str]) -> None:
    found = json.loads(llminfer("llama-3-8b", "--quantization", "q4_k_m", "--json"))
    assert found["engine"] == "llamacpp"
    # llama.cpp caches in fp16, whatever the weights are.
    assert found["kv_bytes_per_token"] == 131_072
    small = json.loads(llminfer("llama-3-8b", "--quantization", "q4_k_m", "--kv-dtype", "q4_0", "--json"))
    assert small["kv_bytes_per_token"] == 131_072 * 4.5 / 16


def test_what_graphs_take_is_taken_out_of_the_pool(llminfer: Callable[..., str]) -> None:
    plain, less = (json.loads(llminfer("llama-3-8b", *more, "--json")) for more in ((), ("--graphs-mib", "700")))
    assert plain["kv_pool_bytes"] - less["kv_pool_bytes"] == less["graphs_bytes"] == 700 * 2**20
    assert re.search(r"graphs +0\.6836 +as given", llminfer("llama-3-8b", "--graphs-mib", "700"))


def test_batches_can_be_given_and_hold_blocks_behind_a_window(llminfer: Callable[..., str]) -> None:
    some = ((), ("--batched-tokens", "8192"), ("--gpu", "A100 80GB"))
    offline, given, other = (json.loads(llminfer("mistral-7b", *more, "--json")) for more in some)
    assert offline["maximum_concurrency"] == 14.42
    assert given["maximum_concurrency"] > 1.5 * offline["maximum_concurrency"]
    # vLLM takes 8,192 on an A100, however large.
    assert other["activation_peak_bytes"] == given["activation_peak_bytes"] < offline["activation_peak_bytes"]


def test_sglang_takes_its_share_of_what_is_free_when_it_looks(llminfer: Callable[..., str]) -> None:
    found = json.loads(llminfer("llama-3-8b", "--engine", "sglang", "--non-torch-mib", "1024", "--json"))
    free = found["total_bytes"] - 2**30
    pool = free - found["weights_bytes"] - free * (1 - 0.88)
    assert found["kv_pool_bytes"] == pytest.approx(pool, abs=1)
    assert "- 1.00 in use before) of H100 80GB x 0.88" in llminfer("llama-3-8b", "--engine", "sglang", "--non-torch-mib", "1024")


@pytest.mark.parametrize(
    ("config", "said", "status"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 8}},
            "stored as gptq of 8 bits, of which no layout is declared",
            1,
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            "stored as fp8 of another tool than compressed-tensors",
            1,
        ),
        (
            {
                "quantization_config": {
                    "quant_method": "bitsandbytes",
                    "load_in_8bit": True,
                    "llm_int8_skip_modules": ["lm_head", "o_proj"],
                }
            },
            "leaves o_proj in 16 bits, which is not counted here",
            1,
        ),
        ({"quantization_config": {"quant_method": "gptq", "dynamic": {"-:down": {}}}}, "gptq with modules that differ", 1),
        ({"dtype": "float64"}, "declares the dtype 'float64', which is not known here; name one with --dtype", 2),
    ],
)
def test_what_is_stored_otherwise_is_no_prediction(
    llminfer: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path, config: dict[str, Any], said: str, status: int
) -> None:
    path = folder(tmp_path, **config)
    assert cli.main(["memory", path]) == status
    assert said in capsys.readouterr().err
    assert llminfer(path, "--quantization", "none", "--dtype", "bf16")


def test_skipped_modules_that_no_format_quantizes_are_no_variant(llminfer: Callable[..., str], tmp_path: Path) -> None:
    declared = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}
    assert json.loads(llminfer(folder(tmp_path, quantization_config=declared), "--json"))["quantization"] == "int8"


def folder(tmp_path: Path, **config: Any) -> str:
    (tmp_path / "config.json").write_text(json.dumps(json.loads((SHAPES / "llama-3-8b" / "config.json").read_text()) | config))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("declared", "quantization"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "gptq"),
        ({"quant_method": "awq", "q_group_size": 64}, "awq"),
        ({"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "int", **CHANNELS}}},
            },
            "w8a8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", **CHANNELS}}},
            },
            "fp8",
        ),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 64}}}}, "w4a16"),
    ],
)
def test_a_folder_says_how_it_is_quantized(
    llminfer: Callable[..., str], tmp_path: Path, declared: dict[str, Any], quantization: str
) -> None:
    found = json.loads(llminfer(folder(tmp_path, quantization_config=declared), "--json"))
    assert found["quantization"] == quantization


def test_the_group_size_of_a_folder_counts(llminfer: Callable[..., str], tmp_path: Path) -> None:
    bits = []
    for size in (32, 128):
        declared = {"quant_method": "awq", "group_size": size}
        bits.append(json.loads(llminfer(folder(tmp_path, quantization_config=declared), "--json"))["weights_bytes"])
    assert bits[0] - bits[1] == pytest.approx(6_979_321_856 * 20 * (1 / 32 - 1 / 128) / 8, rel=1e-2)
    assert "which is not known here" in llminfer(folder(tmp_path, quantization_config={"quant_method": "exl2"}), status=2)


def gguf(path: Path, layers: int = 2) -> str:
    """A small GGUF file, its matrices in Q8_0: 34 bytes for 32 weights."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    sizes = {
        "embedding_length": 64,
        "feed_forward_length": 96,
        "context_length": 128,
        "block_count": layers,
        "attention.head_count": 4,
    }
    entries = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.file_type") + struct.pack("<II", 4, 7),
    ]
    entries += [text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in sizes.items()]
    tensors, offset = [], 0
    for name, shape in {"token_embd.weight": (64, 10), "output.weight": (64, 10), "blk.0.attn_q.weight": (64, 64)}.items():
        tensors.append(text(name) + struct.pack("<IQQIQ", 2, *shape, 8, offset))
        offset += -(-shape[0] * shape[1] // 32 * 34 // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries + tensors)
    path.write_bytes(head + bytes(-len(head) % 32) + bytes(offset))
    return str(path)


def test_a_gguf_file_is_measured_and_served_by_llamacpp(llminfer: Callable[..., str], tmp_path: Path) -> None:
    path = gguf(tmp_path / "model.gguf")
    found = json.loads(llminfer(path, "--json"))
    assert (found["engine"], found["quantization"]) == ("llamacpp", "q8_0")
    assert found["weights_bytes"] == (2 * 640 + 4096) // 32 * 34
    assert "is stored as q8_0, not q4_k_m; leave --quantization out" in llminfer(path, "--quantization", "q4_k_m", status=2)
