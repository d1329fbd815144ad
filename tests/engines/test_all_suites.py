"""Every suite on every engine, as a user runs them: one GPU, dp=2 and tp=2 where the engine has them, on the reference model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable

import pytest

from tests.support.paths import BASELINES, SUITES

QUESTIONS = 40
# Of several processes: what they answer, hold and are. Their speed on a few cores says nothing, and what one cache, one pool and
# one run after another do is asked of the engine on one GPU.
OF_ONE_GPU = (
    "tokens_per_second",
    "left_behind",
    "execution_modes",
    "greedy_tokens_do_not_depend",
    "chat",
    "accuracy_has_not_dropped",
)
CHOSEN = f"not ((dp2 or tp2) and ({' or '.join(OF_ONE_GPU)}))"
CHOSEN_SUITES = (
    "chat",
    "divergence",
    "layout",
    "accuracy",
    "kv_cache",
    "execution_modes",
    "memory",
    "parallelism",
    "settings",
    "throughput",
    "tokens",
)


@pytest.fixture
def suites(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """All suites but serving, in a folder of their own, with the project's baselines; what has none is recorded there."""
    # pytest-benchmark switches itself off where it sees a worker of pytest-xdist, which may be what runs this test.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    # Not those of this machine: speed recorded on it while it was quiet says nothing of a machine that runs tests side by side.
    shutil.copytree(BASELINES / "any", pytester.path / "baselines" / "any")

    def run(*arguments: str, names: tuple[str, ...] = CHOSEN_SUITES) -> pytest.RunResult:
        for name in names:
            shutil.copy(SUITES / f"test_{name}.py", pytester.path)
        result = pytester.runpytest_subprocess(
            "-v", "-k", CHOSEN, f"--gsm8k-questions={QUESTIONS}", "--update-baselines=new", *arguments
        )
        assert [line.split()[1] for line in result.stdout.lines if line.startswith(("FAILED ", "ERROR "))] == []
        return result

    return run


def passed(result: pytest.RunResult, test: str, cell: str) -> bool:
    """Whether the test of that cell passed: a skip, or an inconclusive verdict, is no pass."""
    pattern = rf"test_\w+\.py::{test}\[(?:\w+-)?{re.escape(cell)}(?:-\w+)?\] (\w+)"
    found = [match[1] for line in result.stdout.lines if (match := re.search(pattern, line))]
    assert found, f"{test} did not run on {cell}"
    return set(found) == {"PASSED"}


def check_cells(result: pytest.RunResult, single: str, spreads: tuple[str, ...], at: str) -> None:
    """Tokens are those of transformers, replicas and ranks answer as one GPU does, and every rank is in its place."""
    for words in ("", *spreads):
        cell = f"{single}{words}{at}"
        assert passed(result, "test_greedy_tokens_are_those_of_one_gpu", cell)
        assert passed(result, "test_greedy_tokens_are_as_recorded", cell)
        assert passed(result, "test_divergence_from_unquantized_weights", cell)
        assert passed(result, "test_every_rank_is_there", cell)
        assert passed(result, "test_weights_take_the_bytes_that_the_configuration_implies", cell)
    for words in spreads:
        assert passed(result, "test_every_rank_holds_its_share_of_the_weights", f"{single}{words}{at}")
        assert passed(result, "test_every_parameter_is_stored_as_declared", f"{single}{words}{at}")
        assert passed(result, "test_layout_is_as_recorded", f"{single}{words}{at}")


def test_vllm_on_one_gpu_and_on_two(suites: Callable[..., pytest.RunResult], vllm_python: str) -> None:
    # Replicas are workers of their own whatever the engine: those of transformers stand for all. A start of vLLM takes a minute.
    result = suites(f"--engine=vllm@{vllm_python}", "--tp=1,2")
    at = f"@{vllm_python}"
    check_cells(result, "vllm", ("-tp2",), at)
    assert passed(result, "test_every_parameter_is_stored_as_declared", f"vllm{at}")
    assert passed(result, "test_pool_is_as_large_as_its_blocks", f"vllm{at}")
    assert passed(result, "test_pool_is_as_large_as_its_blocks", f"vllm-tp2{at}")
    result.stdout.re_match_lines([r"cell +parallelism +questions", r"vllm.* single ", r"vllm.* tp2 ", "engine loads: 2"])


def test_sglang_on_one_gpu_and_on_two(suites: Callable[..., pytest.RunResult], sglang_python: str) -> None:
    result = suites(f"--engine=sglang@{sglang_python}", "--tp=1,2")
    check_cells(result, "sglang", ("-tp2",), f"@{sglang_python}")


def test_llamacpp_in_three_formats(suites: Callable[..., pytest.RunResult], llamacpp_python: str) -> None:
    result = suites(f"--engine=llamacpp@{llamacpp_python}", "--dtype=fp16", "--quantization=none,q8_0,q4_k_m")
    at = f"@{llamacpp_python}"
    assert passed(result, "test_greedy_tokens_are_as_recorded", f"llamacpp-fp16{at}")
    for words in ("", "-q8_0", "-q4_k_m"):
        assert passed(result, "test_every_parameter_is_stored_as_declared", f"llamacpp-fp16{words}{at}")
        assert passed(result, "test_weights_take_the_bytes_that_the_configuration_implies", f"llamacpp-fp16{words}{at}")


def test_transformers_on_one_gpu_and_on_two(suites: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    result = suites("--engine=transformers", "--gpus=2")
    check_cells(result, "transformers", ("-dp2", "-tp2"), "")
    (table,) = pytester.path.glob("baselines/*/reference/parallelism.json")
    entries = json.loads(table.read_text())["entries"]
    kept = [name for name in entries if name.startswith("transformers-none-auto")]
    assert sorted(name.rpartition("kv_auto")[2] for name in kept) == ["", "-dp2", "-tp2"]
    assert all(entries[name]["expected"]["questions"] == QUESTIONS for name in kept)
