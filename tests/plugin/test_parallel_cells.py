"""Cells that are split: judged by the one-GPU cell of the same session, shown side by side, skipped where devices are too few."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

SUITE = Path(__file__).resolve().parents[2] / "suites" / "test_parallelism.py"
NVIDIA_SMI = '#!/bin/sh\necho "0, GPU-a, NVIDIA H100 80GB HBM3, 81559 MiB, 580.1"\n'
FAULTY = """
    import pytest

    @pytest.fixture(scope="session")
    def engine_args(engine_spec):
        return {"fault": "drop_kv_block"} if engine_spec.dp > 1 else {}
"""


@pytest.fixture
def spread(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    shutil.copy(SUITE, pytester.path)
    return lambda *arguments: run("-v", "--gsm8k-questions=40", *arguments)


def test_replicas_are_compared_with_one_and_shown_beside_it(spread: Callable[..., pytest.RunResult], mode: tuple[str, ...]) -> None:
    result = spread("--gpus=2", "--dp=1,2", *mode)
    outcomes = result.parseoutcomes()
    assert outcomes.get("failed", 0) == outcomes.get("errors", 0) == 0
    result.stdout.fnmatch_lines(
        [
            "cell *parallelism *questions *seconds *of single *tokens/s *accuracy",
            "simulated *single *40 *1.00 *%",
            "simulated *dp2 *40 *%",
            "engine loads: 3",
        ]
    )


def test_a_replica_that_answers_otherwise_is_caught(pytester: pytest.Pytester, spread: Callable[..., pytest.RunResult]) -> None:
    pytester.makeconftest(FAULTY)
    result = spread("--gpus=2", "--dp=1,2")
    result.stdout.fnmatch_lines(["*FAIL: dp2 gives the tokens of one GPU*"])


def test_without_the_cell_on_one_gpu_there_is_nothing_to_compare_with(spread: Callable[..., pytest.RunResult]) -> None:
    result = spread("--dp=2", "-rs")
    result.stdout.fnmatch_lines(["SKIPPED*simulated has not been asked in this session*--tp=1,2"])


def test_the_table_is_stored_where_baselines_are_recorded(
    pytester: pytest.Pytester, spread: Callable[..., pytest.RunResult]
) -> None:
    spread("--dp=1,2", "--update-baselines")
    (stored,) = pytester.path.glob("baselines/*/reference/parallelism.json")
    entries = json.loads(stored.read_text())["entries"]
    assert sorted(entries) == ["simulated-none-auto-kv_auto", "simulated-none-auto-kv_auto-dp2"]
    assert all(entry["expected"]["questions"] == 40 for entry in entries.values())


def test_a_cell_that_needs_more_gpus_than_there_are_is_a_visible_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = pytester.mkdir("bin")
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    pytester.makepyfile("def test_cell(engine): pass")
    result = pytester.runpytest_subprocess("--engine=transformers", "--tp=2", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*transformers-tp2 needs 2 GPUs, and 1 is visible here; make more visible *"])


def test_a_cell_that_needs_more_processes_than_cores_is_a_visible_skip(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    pytester.makepyfile("def test_cell(engine): pass")
    result = run("--dp=4096", "-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*simulated-dp4096 needs 4096 processes at once*"])


def test_cells_that_are_served_say_so(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("def test_cell(engine_spec): assert engine_spec.serve")
    result = run("--serve", "-v")
    result.stdout.fnmatch_lines(["*test_cell[[]simulated-serve[]] PASSED*"])
