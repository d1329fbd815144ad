"""The suites on the reference model with a real engine: green as they are, and red with a fault of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY


@pytest.fixture
def suite(run_suites: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    """Run one suite in a folder of its own, its engine with or without a fault."""

    def run(name: str, *arguments: str, fault: str = "", baselines: Path = REPOSITORY / "baselines") -> pytest.RunResult:
        return run_suites(name, arguments=(f"--baselines={baselines}", *arguments), fault=fault)

    return run


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    return {
        name: count
        for name, count in result.parseoutcomes().items()
        if name in ("passed", "failed", "error", "errors", "inconclusive")
    }


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kv_cache_is_red_for_a_lost_block(suite: Callable[..., pytest.RunResult], dtype: str) -> None:
    result = suite("kv_cache", f"--dtype={dtype}", fault="lose_a_block")
    result.stdout.fnmatch_lines(
        ["*FAIL: greedy generation gives the tokens of cache path 'no_cache'", "*prompt *, position *: token * instead of token *"]
    )
    assert outcomes(result)["failed"] >= 1


def test_kv_cache_is_red_for_shifted_positions_although_no_token_changes(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("kv_cache", "--dtype=fp32", fault="shift_positions")
    result.stdout.fnmatch_lines(
        [
            "*FAIL: greedy generation gives the probabilities of cache path 'no_cache'",
            "*8 of 8 prompts have more than 100 times the squared error",
            "*prompt *: R *",
        ]
    )
    assert outcomes(result)["failed"] >= 1


def test_kv_cache_is_red_for_padding_that_is_not_masked(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("kv_cache", "--dtype=fp32", fault="unmask_padding")
    result.stdout.fnmatch_lines(["*FAIL: greedy generation gives the * of cache path 'no_cache'"])
    assert outcomes(result)["failed"] >= 1


def test_kv_cache_is_green_in_fp32(suite: Callable[..., pytest.RunResult]) -> None:
    assert outcomes(suite("kv_cache", "--dtype=fp32")) == {"passed": 4}


def test_execution_modes_are_red_for_shifted_positions(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("execution_modes", "--dtype=fp32", "-k", "what_prefill_gives", fault="shift_positions")
    result.stdout.fnmatch_lines(["*FAIL: decoding gives the distributions that prefill gives for the same tokens"])
    # Where every token is decoded, all positions are shifted alike, and rotary positions are relative.
    assert outcomes(result) == {"failed": 1, "passed": 1}


def test_execution_modes_of_4_bit_weights_are_judged_beside_fp32(suite: Callable[..., pytest.RunResult]) -> None:
    """bitsandbytes multiplies one row by another kernel than a batch: the noise of batches alone would call that a fault."""
    result = suite("execution_modes", "--quantization=nf4", "-k", "test_decode_gives or changes_no_more")
    assert outcomes(result) == {"passed": 2}
    result.stdout.fnmatch_lines(["transformers-nf4 *pass R [01].*"])
    result = suite("execution_modes", "--quantization=nf4", "-k", "test_decode_gives", fault="lose_a_block")
    result.stdout.fnmatch_lines(["*FAIL: decoding gives the distributions that prefill gives for the same tokens"])
    assert outcomes(result) == {"failed": 1}


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_layout_is_red_for_one_linear_in_fp32_and_names_it(suite: Callable[..., pytest.RunResult], quantization: str) -> None:
    result = suite("layout", f"--quantization={quantization}", fault="keep_a_layer_in_float32")
    result.stdout.fnmatch_lines(["*model.layers.2.mlp.down_proj.weight*float32*"])
    assert outcomes(result)["failed"] == 2


def test_memory_is_red_for_an_embedding_in_fp32(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("memory", "-k", "weights", fault="untie_nothing_but_copy_the_embedding")
    result.stdout.fnmatch_lines(["*weights are * bytes larger than predicted*"])
    assert outcomes(result) == {"failed": 1}


def test_memory_is_red_for_a_leak(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("memory", "-k", "left_behind", fault="leak")
    result.stdout.fnmatch_lines(["*memory in use grew by * bytes over * identical requests*"])
    assert outcomes(result) == {"failed": 1}


def test_memory_is_red_for_a_peak(suite: Callable[..., pytest.RunResult]) -> None:
    assert outcomes(suite("memory", "-k", "peak and run")) == {"passed": 1}
    result = suite("memory", "-k", "peak and run", fault="hog")
    result.stdout.fnmatch_lines(["*run peak on a fresh start is * bytes above its budget*"])
    assert outcomes(result) == {"failed": 1}


@pytest.mark.alone
def test_throughput_is_red_for_a_slower_model(suite: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    suite("throughput", "-k", "decode", "--update-baselines", baselines=tmp_path)
    result = suite("throughput", "-k", "decode", fault="sleep", baselines=tmp_path)
    result.stdout.fnmatch_lines(["*FAIL: decode throughput, batch 8: no part of a step has become slower*"])
    assert outcomes(result) == {"failed": 1}


def test_accuracy_is_red_for_rounded_weights(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("accuracy", "--gsm8k-questions=150", "-k", "dropped", fault="round_weights")
    result.stdout.fnmatch_lines(["*FAIL: *against the baseline*", "*lost: syn-*"])
    assert outcomes(result) == {"failed": 1}


def test_a_saved_model_is_loaded_again_with_the_attention_that_it_had(suite: Callable[..., pytest.RunResult]) -> None:
    """Which is not saved with it, and rounds otherwise."""
    result = suite("quantization", "-k", "saved", '--engine-args={"attn_implementation": "eager"}')
    assert outcomes(result) == {"passed": 1}
