"""The divergence suite end to end on the simulated engine: recorded, met, and red for each fault by the test that should see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import SUITES

RECORDED, REFERENCE = "test_predictions_are_as_recorded", "test_divergence_from_unquantized_weights"


@pytest.fixture
def suite(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    shutil.copy(SUITES / "test_divergence.py", pytester.path)
    return run


@pytest.fixture
def folder(pytester: pytest.Pytester) -> Path:
    return pytester.path / "baselines" / "any" / "reference"


def entry(folder: Path) -> dict[str, Any]:
    (found,) = json.loads((folder / "divergence.json").read_text())["entries"].values()
    return found


def fault(name: str, **more: object) -> str:
    return f"--engine-args={json.dumps({'fault': name, **more})}"


def test_a_record_is_made_once_with_one_side_file_and_met(
    suite: Callable[..., pytest.RunResult], folder: Path, mode: tuple[str, ...]
) -> None:
    result = suite("--update-baselines", "-rs", *mode)
    result.assert_outcomes(skipped=1, passed=1)
    result.stdout.fnmatch_lines(
        ["*1 recorded in *", "*baseline recorded: any/reference/divergence/simulated-none-auto-kv_auto; run again *"]
    )
    (side_file,) = folder.glob("*.npz")
    expected = entry(folder)["expected"]
    assert expected["side_file"]["name"] == side_file.name
    assert side_file.stat().st_size < 450_000
    assert 0 <= expected["noise_kl"] < 1e-9
    assert entry(folder)["provenance"]["n"] == 32 * 128
    suite(*mode).assert_outcomes(passed=2)
    assert sorted(path.name for path in folder.iterdir()) == [side_file.name, "divergence.json"]


@pytest.mark.parametrize("name", ["shift_positions", "drop_kv_block"])
def test_a_fault_is_caught_by_both_tests(suite: Callable[..., pytest.RunResult], name: str) -> None:
    suite("--update-baselines")
    result = suite(fault(name))
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "FAIL: next-token distributions are those that this cell gave when the baseline was recorded",
            "*prompt *: KL * nats, same top-1 *",
            "FAIL: next-token distributions are those of transformers *, within what same weights may change",
        ]
    )


def test_clean_repeats_never_fail(suite: Callable[..., pytest.RunResult]) -> None:
    suite("--update-baselines")
    for _ in range(3):
        suite("--llminfer-strict").assert_outcomes(passed=2)


def test_a_new_record_replaces_the_side_file(suite: Callable[..., pytest.RunResult], folder: Path, mode: tuple[str, ...]) -> None:
    suite("--update-baselines", fault("drop_kv_block"), *mode)
    (first,) = folder.glob("*.npz")
    suite("--update-baselines", *mode)
    (second,) = folder.glob("*.npz")
    assert first.name != second.name
    assert entry(folder)["expected"]["side_file"]["name"] == second.name


def test_a_missing_and_an_altered_side_file_are_one_clear_line(suite: Callable[..., pytest.RunResult], folder: Path) -> None:
    suite("--update-baselines")
    (side_file,) = folder.glob("*.npz")
    content = side_file.read_bytes()
    side_file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = suite()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["BaselineError: side file * is not what was recorded (its sha256 differs); restore it *"])
    side_file.unlink()
    result = suite()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["BaselineError: side file *, which a baseline names, is missing; restore it *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_another_dataset_is_invalid(suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester) -> None:
    suite("--update-baselines")
    rows = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(40)]
    path = pytester.path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = suite(f"--dataset={path}", "-v")
    result.stdout.fnmatch_lines(["*INVALID*", "*sequences_sha256: recorded *, now *"])


def test_limits_of_ones_own_are_taken_and_wrong_ones_named(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("-k", REFERENCE, '--divergence-limits={"same weights": [1e-13, 0.5]}')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*threshold: KL <= 1e-13 nats * (from same weights: --divergence-limits)"])
    for given, message in (
        ('{"2-bit": [1, 1]}', "*--divergence-limits: unknown kind of cell '2-bit'; valid: same weights, 8-bit, 4-bit, 3-bit"),
        ('{"4-bit": [1]}', "*--divergence-limits: '4-bit' needs [[]KL in nats above 0, share from 0 to 1], not [[]1]"),
        ("0.1", "*--divergence-limits: *is not a JSON object*"),
    ):
        result = suite(f"--divergence-limits={given}")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([message])
