"""The settings suite end to end: a default that moved is red, with the versions; what a server does not report is not recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest

from tests.support.openai_server import Fake
from tests.support.paths import SUITES

MOVED = '--engine-args={"fault": "move_default"}'


@pytest.fixture
def settings(pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]) -> Callable[..., pytest.RunResult]:
    shutil.copy(SUITES / "test_settings.py", pytester.path)
    return lambda *arguments, **engine: run("-v", "-rs", *arguments, **engine)


def test_a_default_that_moved_is_red_and_says_between_which_versions(
    settings: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    settings("--update-baselines=new").assert_outcomes(skipped=2)
    (file,) = pytester.path.glob("baselines/*/reference/settings_defaults.json")
    record = json.loads(file.read_text())
    (entry,) = record["entries"].values()
    entry["provenance"]["versions"]["engine"] = "numpy 1.26.4"
    file.write_text(json.dumps(record))
    settings().assert_outcomes(passed=2)
    result = settings(MOVED)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ["FAIL: the engine's defaults are as recorded", "*max_batch_tokens: 16384 → 8192", "*(engine numpy 1.26.4 → numpy *)*"]
    )


def test_a_server_of_somebody_else_has_no_empty_record(
    settings: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytest.importorskip("openai")
    fake = Fake()
    try:
        engine = f"openai@{fake.address}"
        settings("--update-baselines", engine=engine).assert_outcomes(skipped=1)
        settings(engine=engine).assert_outcomes(passed=1)
    finally:
        fake.server.shutdown()
        fake.server.server_close()
    assert [file.stem for file in pytester.path.glob("baselines/*/*/*.json")] == ["settings_resolved"]
