"""Faults of memory in a real model, each named by the suites; GPT-2's shape with drawn weights among the models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GPT2 = ("--model=gpt2", "--weights=dummy", "--dtype=bf16", "--quantization=none")
STATIC = ("-k", "stored_as_declared or every_line_of or weights_take")


@pytest.fixture
def suites(run_suites: Callable[..., pytest.RunResult], tmp_path: Path) -> Callable[..., pytest.RunResult]:
    """The suites on layouts and memory, and others, in one session, their engine with or without a fault."""

    def run(*arguments: str, others: tuple[str, ...] = (), fault: str = "") -> pytest.RunResult:
        return run_suites("layout", "memory", *others, arguments=(f"--baselines={tmp_path}", *arguments), fault=fault)

    return run


def test_a_layer_left_in_bf16_and_one_without_double_quantization_are_named(suites: Callable[..., pytest.RunResult]) -> None:
    result = suites("--quantization=nf4", *STATIC, fault="leave_a_layer_unquantized")
    result.assert_outcomes(failed=3)
    result.stdout.re_match_lines_random(
        [
            r".*model\.layers\.2\.mlp\.down_proj\.weight: dtype bfloat16 instead of uint8, .*packing none instead of nf4.*",
            r".*model\.layers\.1\.mlp\.up_proj\.weight: .*double_quantized False instead of True.*",
            r".*weights are [\d,]+ bytes larger than predicted.*",
            r".*weights: [\d,]+ bytes more than the predicted.*",
        ]
    )


def test_gpt2_is_what_its_configuration_says(suites: Callable[..., pytest.RunResult]) -> None:
    result = suites(*GPT2, STATIC[0], f"{STATIC[1]} or near_normal", others=("quantization",))
    result.assert_outcomes(passed=4)
    # Four a layer; embeddings and the output matrix are no linears of the decoder.
    result.stdout.re_match_lines(
        [r".*pass 48 of 48 near normal", r"transformers.*gpt2 +weights +248,879,616 +248,879,616 +\+0 +±2,488,796"]
    )


def test_an_output_matrix_that_is_no_longer_tied_is_named(suites: Callable[..., pytest.RunResult]) -> None:
    result = suites(*GPT2, *STATIC, fault="untie")
    result.assert_outcomes(failed=3)
    result.stdout.re_match_lines_random(
        [
            r".*lm_head\.weight and transformer\.wte\.weight should be one tensor and are not",
            r".*lm_head\.weight: extra: bfloat16 \[50257, 768\], 77,194,752 bytes",
            r".*weights are 77,194,752 bytes larger than predicted \(\+31\.02 %\)",
        ]
    )
