"""The environments that are there, and their removal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_llminfer.engines.environments import EnvironmentInUseError, cache, interpreter, list_environments, remove
from pytest_llminfer.errors import InvalidSpecError
from tests.support import tiny_environments
from tests.support.tiny_environments import left_behind
from tests.support.tiny_wheels import wheel

index, uv = tiny_environments.index, tiny_environments.uv


@pytest.mark.usefixtures("uv")
def test_environments_are_listed_with_what_is_known_of_them() -> None:
    assert list_environments() == []
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    (folder.with_name("half-2.0-py3.11-00000000") / "bin").mkdir(parents=True)
    half, whole = list_environments()
    assert (half.name, half.version, half.python, half.complete, half.created) == ("half", "2.0", "3.11", False, "")
    assert (whole.requirement, whole.folder, whole.complete, whole.in_use) == ("llminfer-tiny==1.0", folder.name, True, False)
    assert whole.python == ".".join(map(str, sys.version_info[:3]))
    assert whole.created[:2] == "20"
    assert whole.size_bytes > 1000


@pytest.mark.usefixtures("uv")
def test_environments_are_removed_by_requirement_by_folder_and_all(index: Path) -> None:
    for version in ("2.0", "3.0"):
        wheel(index, "llminfer-tiny", version)
    folders = [Path(interpreter(f"llminfer-tiny=={version}.0")).parents[1] for version in (1, 2, 3)]
    assert remove(["llminfer-tiny==1.0"]) == [folders[0].name]
    assert remove([folders[1].name, "llminfer-tiny==2.0"]) == [folders[1].name]
    assert left_behind() == [folders[2].name]
    with pytest.raises(InvalidSpecError, match=r"Did you mean 'llminfer-tiny==3\.0'"):
        remove(["llminfer-tiny==3.0", "llminfer-tiny==3"])
    assert left_behind() == [folders[2].name], "all names are looked up before anything goes"
    remove(None)
    assert left_behind() == []
    assert remove(None) == []


@pytest.mark.usefixtures("uv")
def test_an_environment_that_a_process_runs_from_is_not_removed() -> None:
    python = interpreter("llminfer-tiny==1.0")
    process = subprocess.Popen([python, "-c", "print(1, flush=True); import time; time.sleep(60)"], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert list_environments()[0].in_use
        with pytest.raises(EnvironmentInUseError, match=f"in use by process {process.pid}; end it first"):
            remove(["llminfer-tiny==1.0"])
        assert Path(python).exists()
    finally:
        process.kill()
        process.communicate()
    assert not list_environments()[0].in_use
    assert len(remove(["llminfer-tiny==1.0"])) == 1


@pytest.mark.usefixtures("uv")
def test_a_process_that_renamed_itself_is_known_by_the_libraries_it_mapped() -> None:
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    code = (
        "import mmap, sys, time\nstream = open(sys.argv[1], 'rb')\n"
        "mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)\nprint(1, flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(folder / cache.MARKER)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(EnvironmentInUseError, match=f"in use by process {process.pid};"):
                remove(None)
        finally:
            process.kill()
    assert remove(None) == [folder.name]


@pytest.mark.usefixtures("uv")
def test_an_environment_that_is_being_made_is_not_removed() -> None:
    folder = Path(interpreter("llminfer-tiny==1.0")).parents[1]
    with cache.locked(folder):
        assert list_environments()[0].in_use
        with pytest.raises(EnvironmentInUseError, match="being made or removed by another session"):
            remove(None)
    assert folder.exists()
    remove(None)
    assert not folder.exists()
