"""llama-cpp-python's own server, as a user serves it: the whole serving suite passes."""

from __future__ import annotations

import shutil

import pytest

from tests.support.paths import REPOSITORY, SUITES

pytest.importorskip("openai")


def test_the_serving_suite_passes(llamacpp_python: str, pytester: pytest.Pytester) -> None:
    shutil.copy(SUITES / "test_serving.py", pytester.path)
    arguments = (f"--engine=llamacpp@{llamacpp_python}", "--serve", "-v", "-rs", "-p", "no:cacheprovider")
    # Latency is measured and recorded, and not judged: two measurements on a machine that others use may be far apart.
    result = pytester.runpytest_subprocess(*arguments, "--update-baselines")
    result.assert_outcomes(passed=7, skipped=1)
    # The cache of the engine itself, so that both are judged by one record.
    result.stdout.fnmatch_lines(["SKIPPED*baseline recorded: */serving_latency/llamacpp-none-auto-kv_auto-serve; *"])


def test_accuracy_through_the_server_is_held_against_the_record_made_without_it(
    llamacpp_python: str, pytester: pytest.Pytester
) -> None:
    """The server takes text only, and does not report the engine's defaults: no test asks for them."""
    for suite in ("accuracy", "settings"):
        shutil.copy(SUITES / f"test_{suite}.py", pytester.path)
    shutil.copytree(REPOSITORY / "baselines" / "any", pytester.path / "baselines" / "any")
    result = pytester.runpytest_subprocess(
        f"--engine=llamacpp@{llamacpp_python}", "--serve", "--dtype=fp16", "--gsm8k-questions=20", "--accuracy-margin=30",
        "--update-baselines=new", "-rs", "-p", "no:cacheprovider",
    )  # fmt: skip
    result.assert_outcomes(passed=3, skipped=1)
    result.stdout.fnmatch_lines(["llamacpp-serve-fp16 *record *of 20 *pass"])
    result.stdout.fnmatch_lines(["SKIPPED*baseline recorded: */settings_resolved/llamacpp-none-fp16-kv_auto-serve; *"])


def test_an_argument_that_the_server_does_not_know_is_one_line(llamacpp_python: str, pytester: pytest.Pytester) -> None:
    shutil.copy(SUITES / "test_serving.py", pytester.path)
    result = pytester.runpytest_subprocess(
        f"--engine=llamacpp@{llamacpp_python}", "--serve", '--engine-args={"n_ctxx": 512}', "-p", "no:cacheprovider", "-k", "listed"
    )
    result.assert_outcomes(errors=1, deselected=7)
    result.stdout.fnmatch_lines(["*BadInputError: llama-cpp-python's server has no setting 'n_ctxx'. Did you mean 'n_ctx'?*"])
