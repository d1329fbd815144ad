"""The helper that gives tests of real engines their interpreters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.errors import EngineStartError
from tests.support.engines import environments

VARIABLES = {"vllm": "LLMINFER_TEST_VLLM", "llamacpp": "LLMINFER_TEST_LLAMACPP", "sglang": "LLMINFER_TEST_SGLANG"}


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    for name in VARIABLES.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return environments


@pytest.mark.parametrize("engine", VARIABLES)
def test_a_variable_names_the_interpreter(helper: Any, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setenv(VARIABLES[engine], sys.executable)
    assert getattr(helper, engine)() == sys.executable


@pytest.mark.parametrize("engine", VARIABLES)
def test_a_wrong_variable_fails_and_makes_nothing(
    helper: Any, monkeypatch: pytest.MonkeyPatch, engine: str, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLES[engine], "/no/python")
    with pytest.raises(EngineStartError, match="/no/python"):
        getattr(helper, engine)()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("engine", "requirement"), [("vllm", "VLLM"), ("llamacpp", "LLAMACPP")])
def test_without_a_variable_the_environment_is_asked_for(
    helper: Any, monkeypatch: pytest.MonkeyPatch, engine: str, requirement: str
) -> None:
    monkeypatch.setattr(helper, "interpreter", lambda text: f"made for {text}")
    assert getattr(helper, engine)() == f"made for {getattr(helper, requirement)}"


def test_the_environment_of_sglang_is_made_by_its_own_file(helper: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maker = tmp_path / "environment.py"
    maker.write_text("def make(folder): return folder / 'bin' / 'python'\n")
    monkeypatch.setattr(helper, "SGLANG", maker)
    assert helper.sglang() == str(tmp_path / "pytest-llminfer" / "test-environments" / "bin" / "python")
    maker.write_text("def make(folder): raise RuntimeError('cannot be made')\n")
    with pytest.raises(RuntimeError, match="cannot be made"):
        helper.sglang()
