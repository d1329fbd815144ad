"""Names of shared memory go as soon as everybody has it; memory of other processes is left alone."""

from __future__ import annotations

import multiprocessing
import multiprocessing.resource_tracker
import os
import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory

from pytest_llminfer.worker.backends.shared_memory import unlink
from pytest_llminfer.worker.protocol.shared_memory import FOLDER, mapped
from tests.support.present import present

CHILD = """\
import sys
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
memory = SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")
print(memory.name, flush=True)
sys.stdin.read()
"""


def test_names_of_a_process_go_and_those_of_another_stay() -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    files = [FOLDER / present(child.stdout).readline().strip() for child in children]
    try:
        assert all(file.exists() for file in files)
        unlink([children[0].pid])
        assert [file.exists() for file in files] == [False, True]
        assert children[0].poll() is None
    finally:
        for child in children:
            child.kill()
            child.wait()
            present(child.stdin).close()
            present(child.stdout).close()
        files[1].unlink()


def test_semaphores_of_this_process_go_and_still_work() -> None:
    before = {file.name for file in FOLDER.glob("sem.mp-*")}
    lock = multiprocessing.get_context("spawn").Lock()
    name = f"sem.{vars(lock)['_semlock'].name.lstrip('/')}"
    assert name not in before
    assert (FOLDER / name).exists()
    memory = SharedMemory(create=True, size=64)
    unlink([])
    assert not (FOLDER / name).exists()
    assert not (FOLDER / memory.name).exists()
    assert lock.acquire(timeout=1)
    present(memory.buf)[0] = 7
    assert present(memory.buf)[0] == 7
    memory.close()
    multiprocessing.resource_tracker.unregister(f"/{memory.name}", "shared_memory")
    # So that its own end finds something to remove.
    (FOLDER / name).touch()


OLDER_AND_NEWER = """\
import mmap, sys, time
from pathlib import Path
def mapped(path):
    with open(path, "w+b") as file:
        file.truncate(4096)
        return mmap.mmap(file.fileno(), 4096)
older, newer = map(Path, sys.argv[1:])
kept = [mapped(older)]
time.sleep(0.1)
from pytest_llminfer.worker.backends import shared_memory
time.sleep(0.1)
kept.append(mapped(newer))
inodes = shared_memory.mapped("self")
assert {older.stat().st_ino, newer.stat().st_ino} <= inodes, inodes
shared_memory.unlink([])
"""


def test_what_was_there_before_the_process_stays_though_it_is_mapped() -> None:
    files = [FOLDER / f"llminfer-test-{os.getpid()}-{name}" for name in ("older", "newer")]
    try:
        subprocess.run([sys.executable, "-c", OLDER_AND_NEWER, *map(str, files)], check=True)
        assert [file.exists() for file in files] == [True, False]
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_a_process_that_is_gone_has_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert mapped(child.pid) == set()
    assert isinstance(mapped(os.getpid()), set)
