"""An environment that cannot be made leaves nothing and says what to do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pytest_llminfer.engines.environments import cache, interpreter
from pytest_llminfer.errors import EngineStartError
from tests.support import tiny_environments
from tests.support.tiny_environments import left_behind
from tests.support.tiny_wheels import wheel

index, uv = tiny_environments.index, tiny_environments.uv


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_version_that_does_not_exist_leaves_nothing_and_says_what_to_do(installer: str, request: pytest.FixtureRequest) -> None:
    if installer == "uv":
        request.getfixturevalue("uv")
    with pytest.raises(EngineStartError, match="failed: there is no such version") as caught:
        interpreter("llminfer-tiny==9.9")
    first, *words = str(caught.value).splitlines()
    assert first.startswith(f"cannot make the environment for llminfer-tiny==9.9: {installer} failed: there is no such version")
    assert "index versions llminfer-tiny" in first
    assert any("llminfer-tiny==9.9" in line or "No matching" in line for line in words)
    log = Path(first.partition("The whole log: ")[2].partition(". ")[0])
    assert log.is_file()
    assert left_behind() == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("NewConnectionError: ...\nERROR: No matching distribution found for x", "the package index cannot be reached"),
        (
            "ERROR: Could not find a version (from versions: none)\nERROR: No matching distribution",
            "check the name and the network",
        ),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("Error: No module named ensurepip", "install uv"),
        ("error: subprocess-exited-with-error", "ended with status 3; the log says why"),
    ],
)
def test_a_failure_is_told_by_its_cause(tmp_path: Path, output: str, reason: str) -> None:
    program = tmp_path / "empty" / "uv"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nprint({output!r})\nraise SystemExit(3)\n")
    program.chmod(0o755)
    with pytest.raises(EngineStartError, match=re.escape(reason)) as caught:
        interpreter("llminfer-tiny==1.0")
    assert reason in str(caught.value).splitlines()[0]
    assert output.splitlines()[-1] in str(caught.value).splitlines()[-1]


def test_a_long_list_of_versions_is_cut_in_the_middle(index: Path) -> None:
    for minor in range(200):
        wheel(index, "llminfer-tiny", f"1.{minor}")
    with pytest.raises(EngineStartError, match="there is no such version") as caught:
        interpreter("llminfer-tiny==9.9")
    (line,) = (line for line in str(caught.value).splitlines() if "from versions" in line)
    assert len(line) < 260
    assert line.endswith("1.198, 1.199)")


@pytest.mark.usefixtures("index")
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineStartError, match="cannot write to the cache folder"):
        interpreter("llminfer-tiny==1.0")


def test_a_relative_cache_folder_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_folder() == Path.home() / ".cache" / "pytest-llminfer"
