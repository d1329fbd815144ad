"""How a worker is started on this machine: its interpreter, its environment, its threads and its temporary files."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from pytest_llminfer.engines.launchers import local
from pytest_llminfer.engines.replica import Launch
from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec


def environment_of(program: str, variables: dict[str, str], log: Path) -> str:
    """What a worker started with this interpreter has as PYTHONPATH."""
    with local.start(program, variables, log) as process:
        return process.communicate()[0].decode().strip()


def test_our_import_path_reaches_our_own_interpreter_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    other = tmp_path / "python"
    other.write_text('#!/bin/sh\necho "path=$PYTHONPATH"\n')
    other.chmod(0o755)
    assert environment_of(str(other), {}, tmp_path / "log") == "path="
    assert environment_of(str(other), {"PYTHONPATH": "/given"}, tmp_path / "log") == "path=/given"
    monkeypatch.setattr(sys, "executable", str(other))
    assert environment_of("", {}, tmp_path / "log") == "path=/ours"
    assert environment_of(str(other), {}, tmp_path / "log") == "path=/ours"


def test_threads_where_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert local.default_threads() == "8"


@pytest.mark.parametrize("base", ["t", "t" * 90])
def test_temporary_files_go_with_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    """The folder is short enough for a socket's path wherever temporary files are kept; what was compiled stays."""
    (tmp_path / base).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / base))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    program = tmp_path / "python"
    program.write_text('#!/bin/sh\ntouch "$TMPDIR/socket"\necho "$TMPDIR $TORCHINDUCTOR_CACHE_DIR" >&2\nexec sleep 100\n')
    program.chmod(0o755)
    log = tmp_path / "log"
    launch = Launch(EngineSpec("simulated", environment=str(program)), Model("reference"), {}, {}, 60.0, log)
    worker, _ = launch.start_worker()
    try:
        deadline = time.monotonic() + 30
        while not log.read_text().endswith("\n") and time.monotonic() < deadline:
            time.sleep(0.01)
        folder, compiled = map(Path, log.read_text().split())
        assert (folder / "socket").exists()
        assert len(f"{folder}/{uuid.uuid4()}") <= 107
    finally:
        worker.kill()
    assert not folder.exists()
    assert compiled.parent == tmp_path / base


def test_no_temporary_folder_stays_where_nothing_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    launch = Launch(EngineSpec("simulated", environment="/no/python"), Model("reference"), {}, {}, 60.0, tmp_path / "log")
    with pytest.raises(EngineStartError, match="/no/python"):
        launch.start_worker()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
