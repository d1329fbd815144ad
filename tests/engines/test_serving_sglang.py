"""SGLang's own server, as a user serves it: the whole serving suite passes, and it counts the tokens of a conversation rightly."""

from __future__ import annotations

import shutil

import pytest

from tests.support.paths import REPOSITORY, SUITES

pytest.importorskip("openai")


def test_the_serving_suite_passes(sglang_python: str, pytester: pytest.Pytester) -> None:
    for name in ("serving", "chat"):
        shutil.copy(SUITES / f"test_{name}.py", pytester.path)
    shutil.copytree(REPOSITORY / "baselines" / "any", pytester.path / "baselines" / "any")
    arguments = (f"--engine=sglang@{sglang_python}", "--serve", "-v", "-rs", "-p", "no:cacheprovider")
    # Latency is measured and recorded, and not judged: two measurements on a machine that others use may be far apart.
    result = pytester.runpytest_subprocess(*arguments, "--update-baselines=new")
    result.assert_outcomes(passed=9, skipped=1)
    result.stdout.fnmatch_lines(
        ["*test_the_server_counts_the_same_tokens* PASSED*", "SKIPPED*baseline recorded: */serving_latency/*"]
    )
