"""Shared memory of engines that are gone goes with them, and that of others stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.worker.protocol.shared_memory import FOLDER, ownerless

DYING = """
import os
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
memory = shared_memory.SharedMemory(create=True, size=4096)
print(memory.name, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start a Python program as a worker; all are ended with the test."""
    started = []

    def start(program: str) -> WorkerProcess:
        log = tmp_path / "log"
        with log.open("ab") as stream:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stream}
            process = subprocess.Popen([sys.executable, "-c", program], **pipes, start_new_session=True)
        started.append(WorkerProcess(process, log))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


def test_the_shared_memory_of_a_killed_group_goes_with_it(start: Callable[..., WorkerProcess], tmp_path: Path) -> None:
    """Its own and its children's; not what another process has mapped as well, nor what was there before."""
    older = shared_memory.SharedMemory(create=True, size=4096)
    code = f"""
import os, pathlib, subprocess, sys, time
from multiprocessing import resource_tracker, shared_memory
resource_tracker.register = lambda *_: None
older = shared_memory.SharedMemory({older.name!r})
own = shared_memory.SharedMemory(create=True, size=4096)
shared = shared_memory.SharedMemory(create=True, size=4096)
names = pathlib.Path({str(tmp_path)!r}) / "names"
if os.fork() == 0:
    child = shared_memory.SharedMemory(create=True, size=4096)
    names.with_suffix(".part").write_text(" ".join([own.name, shared.name, child.name]))
    names.with_suffix(".part").rename(names)
time.sleep(100)
"""
    worker = start(f"exec({code!r})")
    deadline = time.monotonic() + 30
    while not (tmp_path / "names").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    own, shared, child = (tmp_path / "names").read_text().split()
    ours = shared_memory.SharedMemory(shared)
    try:
        worker.kill()
        there = {name: (FOLDER / name).exists() for name in (own, child, shared, older.name)}
        assert there == {own: False, child: False, shared: True, older.name: True}
    finally:
        ours.close()
        ours.unlink()
        older.close()
        older.unlink()


def test_what_a_dead_rank_left_goes_at_the_end_and_what_lives_or_was_there_stays(
    start: Callable[..., WorkerProcess], tmp_path: Path
) -> None:
    """A child in a session of its own, as engines start them, which died by itself: nobody maps what it named."""
    before = time.time()
    ours = shared_memory.SharedMemory(create=True, size=4096)
    kept = FOLDER / f"model-{os.getpid()}"
    kept.touch()
    child = f"subprocess.run([sys.executable, '-c', {DYING!r}], stdout=open({str(tmp_path / 'name')!r}, 'w'))"
    worker = start(f"import subprocess, sys, time; {child}; time.sleep(100)")
    try:
        deadline = time.monotonic() + 30
        while not ((tmp_path / "name").exists() and (tmp_path / "name").read_text().strip()) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = FOLDER / (tmp_path / "name").read_text().strip()
        time.sleep(1.2)
        assert left.exists()
        found = ownerless(worker.process.pid, since=before - 1)
        assert left in found
        assert FOLDER / ours.name not in found
        assert kept not in found
        assert left not in ownerless(worker.process.pid, since=time.time())
        worker.kill()
        assert not left.exists()
        assert (FOLDER / ours.name).exists()
        assert kept.exists()
    finally:
        ours.close()
        ours.unlink()
        kept.unlink()
