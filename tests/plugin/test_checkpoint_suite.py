"""``--checkpoint``: checkpoints on disk in a session of their own, without an engine; red with a fault and green without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faults import checkpoints
from tests.support.paths import ASSETS, SUITES

NO_ENGINE = """
    import pytest

    @pytest.fixture(scope="session")
    def launch_engine():
        raise AssertionError("an engine was asked for")
"""


@pytest.fixture
def judged(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Judge checkpoints in a session that names no engine, and could not start one."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
    pytester.makeconftest(NO_ENGINE)
    shutil.copy(SUITES / "test_checkpoint.py", pytester.path)

    def run(*paths: Path, arguments: tuple[str, ...] = ()) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-rs", *(f"--checkpoint={path}" for path in paths), *arguments)

    return run


def test_each_checkpoint_is_a_row_of_the_table(judged: Callable[..., pytest.RunResult], mode: tuple[str, ...]) -> None:
    result = judged(ASSETS / "gptq", ASSETS / "gguf" / "reference-Q4_K_M.gguf", ASSETS / "gptq", arguments=mode)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines_random(
        [r"checkpoint:gptq +pass 5\.935 bits/weight$", r"checkpoint:reference-Q4_K_M\.gguf +pass \d\.\d+ bits/weight$"]
    )
    result.stdout.no_fnmatch_line("*engine loads*")


def test_without_the_option_there_is_nothing_to_test_and_the_option_is_named(judged: Callable[..., pytest.RunResult]) -> None:
    result = judged()
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["llminfer: no test applies to a cell of this session: 1 needs --checkpoint=PATH"])


def test_a_layer_left_in_16_bits_is_red_beside_a_clean_checkpoint(judged: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    faulty = checkpoints.leave_a_layer_alone(ASSETS / "gptq", tmp_path / "gptq")
    result = judged(ASSETS / "gptq", faulty)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*model.layers.2.mlp.down_proj.weight: left in bfloat16 instead of gptq (*"])
    # Two of one name are told apart by their paths.
    result.stdout.re_match_lines_random([rf"checkpoint:gptq@{ASSETS}/gptq +pass ", rf"checkpoint:gptq@{faulty} +FAIL "])


def test_a_tensor_that_the_index_does_not_name_is_red(judged: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    clean = checkpoints.split(ASSETS / "w8a8", tmp_path / "clean")
    faulty = checkpoints.split(ASSETS / "w8a8", tmp_path / "faulty")
    file = faulty / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    lost = "model.layers.3.mlp.up_proj.weight_scale"
    shard = index["weight_map"].pop(lost)
    file.write_text(json.dumps(index))
    result = judged(clean, faulty)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*FAIL: the index names every tensor, in the file that holds it", f"*{lost} lies in {shard} and is not in the index"]
    )


@pytest.mark.parametrize(("path", "says"), [("nothing", "there is no model at"), (".", "has no config.json")])
def test_what_is_no_checkpoint_is_red_in_one_line(judged: Callable[..., pytest.RunResult], path: str, says: str) -> None:
    result = judged(Path(path))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"BadInputError: *{says}*"])


def test_a_format_that_is_not_declared_is_a_visible_skip(judged: Callable[..., pytest.RunResult], tmp_path: Path) -> None:
    other = checkpoints.declare(ASSETS / "w8a8", tmp_path / "hqq", quant_method="hqq")
    result = judged(other)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["checkpoint:hqq *skip", "SKIPPED*how checkpoint stores quantization 'hqq'*"])
    judged(other, arguments=("--llminfer-strict",)).stdout.fnmatch_lines(
        ["ERROR: nothing was compared in the cell checkpoint:hqq@*"]
    )
