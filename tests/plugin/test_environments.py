"""``--engine=NAME==VERSION``: an environment is made for the session, and what goes wrong there is one line of the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tiny_wheels

pytestmark = pytest.mark.usefixtures("no_installer_configuration")
TESTS = "def test_one(engine): pass\ndef test_two(engine): pass"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[str]]]:
    """What a fake uv was asked so far; it installs from an index that holds a transformers without its dependencies."""
    calls = tiny_wheels.fake_uv(tmp_path / "bin")
    for name, version in {
        "transformers": "1.0",
        "torch": "2.9",
        "accelerate": "2.0",
        "bitsandbytes": "1.0",
        "safetensors": "1.0",
    }.items():
        tiny_wheels.wheel(tmp_path / "index", name, version)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return lambda: [json.loads(line) for line in calls.read_text().splitlines()]


def test_the_worker_runs_in_the_environment_that_was_made_once(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], calls: Callable[[], list[list[str]]], mode: tuple[str, ...]
) -> None:
    pytester.makepyfile(TESTS)
    arguments = (*mode, "--quantization=none,int8")
    result = run(*arguments, engine="transformers==1.0")
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(["*cache/pytest-llminfer/environments/transformers-1.0-py3*/bin/python*"])
    assert "Traceback" not in result.stdout.str()
    assert sum(call[0] == "venv" for call in calls()) == 1
    made = calls()
    run(*arguments, engine="transformers==1.0").assert_outcomes(errors=4)
    assert calls() == made


def test_a_version_that_does_not_exist_is_told_and_the_next_cell_runs(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], calls: Callable[[], list[list[str]]]
) -> None:
    pytester.makepyfile(TESTS)
    result = run("--quantization=none", engine="transformers==9.9,simulated")
    result.assert_outcomes(errors=2, passed=2)
    result.stdout.fnmatch_lines(
        ["*EngineStartError: cannot make the environment for transformers==9.9: uv failed: there is no such *"]
    )
    assert calls()[-1][-1] == "transformers==9.9"


def test_a_distribution_that_is_no_engine_is_refused(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult], calls: Callable[[], list[list[str]]]
) -> None:
    pytester.makepyfile(TESTS)
    result = run(engine="vlm==0.33.0")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unknown distribution 'vlm'*Did you mean 'vllm'?*"])
    assert calls() == []
