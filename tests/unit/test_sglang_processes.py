"""SGLang's processes, without SGLang: who has ended and why, what ends with it, and when a scheduler answers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any, cast

import pytest

from pytest_llminfer.errors import EngineDiedError, EngineStartError, OutOfMemoryError
from pytest_llminfer.worker.backends.sglang import deaths, processes, scheduler, schedulers
from pytest_llminfer.worker.protocol.frames import read_message, write_message


def test_a_process_is_watched_by_its_start_and_named() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    watch = processes.Watch([child.pid, os.getpid()])
    assert watch.ended() == {}
    assert processes.process_name(child.pid) == sys.executable
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    # A zombie has ended, though its id is still there.
    assert watch.ended() == {child.pid: sys.executable}
    child.communicate()
    assert watch.ended() == {child.pid: sys.executable}
    assert (processes.process_name(child.pid), processes.start_time(child.pid)) == ("", None)


TRACEBACK = """\
Traceback (most recent call last):
  File "scheduler.py", line 1, in run
    raise X
{reason}
"""


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB", OutOfMemoryError),
        ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static", OutOfMemoryError),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", OutOfMemoryError),
        ("ValueError: Loaded weights leave no GPU memory for the KV cache", OutOfMemoryError),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", EngineDiedError),
    ],
)
def test_last_words_tell_why(reason: str, error: Callable[..., Any]) -> None:
    found = deaths.death("generating", ["sglang::scheduler (pid 7)"], TRACEBACK.format(reason=reason))
    assert type(found) is error
    assert reason in str(found)
    start = deaths.failed_start(RuntimeError("Initialization failed."), TRACEBACK.format(reason=reason))
    assert type(start) is (OutOfMemoryError if error is OutOfMemoryError else EngineStartError)
    assert reason in str(start)


def test_a_death_without_words_names_the_process() -> None:
    found = deaths.death("generating", ["sglang::scheduler (pid 7, signal 9)"], "")
    assert type(found) is EngineDiedError
    assert str(found).startswith("sglang::scheduler (pid 7, signal 9) of sglang ended while generating without a word")
    during = deaths.failed_start(RuntimeError("Rank 0 scheduler died during initialization (exit code: -9). If"), "")
    assert type(during) is EngineDiedError
    assert "Rank 0 scheduler died during initialization (exit code: -9)" in str(during)


def test_sglang_may_end_its_children_and_never_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    module = type(sys)("sglang.tokenizer_manager")
    vars(module)["kill_process_tree"] = lambda *args, **options: calls.append((*args, options))
    monkeypatch.setitem(sys.modules, "sglang.tokenizer_manager", module)
    survival = deaths.Survival()
    survival.install()
    survival.install()
    with pytest.raises(deaths._EngineFailedError, match="one of its processes failed"):
        module.kill_process_tree(os.getpid())
    survival.starting = False
    module.kill_process_tree(os.getpid(), include_parent=True)
    module.kill_process_tree(os.getpid(), include_parent=False, wait_timeout=60)
    module.kill_process_tree(12345)
    assert calls == [(os.getpid(), False, {}), (os.getpid(), False, {"wait_timeout": 60}), (12345, True, {})]


@pytest.mark.parametrize(("kept", "most"), [(None, 1.0), ("a batch", 30.0)])
def test_memory_is_read_by_the_loop_also_where_it_keeps_its_last_batch(
    monkeypatch: pytest.MonkeyPatch, kept: str | None, most: float
) -> None:
    """A stage of a pipeline never lets go of it."""
    monkeypatch.setattr(scheduler, "_PATIENCE", 0.2)

    class Loop:
        running_batch, last_batch = None, kept

        def process_input_requests(self, requests: list[Any]) -> Any:
            return requests

    loop = Loop()
    turns = scheduler.Turns(loop)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(turns.run(threading.get_ident)))
    asking.start()
    deadline = time.monotonic() + most
    while asking.is_alive() and time.monotonic() < deadline:
        assert loop.process_input_requests(["a request"]) == ["a request"]
        time.sleep(0.01)
    assert answers == [threading.get_ident()]


def test_a_scheduler_may_take_as_long_as_the_session_lets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    connections = []

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            super().connect(address)
            connections.append(self)

    monkeypatch.setattr(socket, "socket", Socket)
    asked = schedulers.Schedulers()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(asked._folder / f"7{scheduler.SOCKET}"))
    listener.listen(1)

    def answer() -> None:
        connection, _ = listener.accept()
        with listener, connection, connection.makefile("rwb") as stream:
            read_message(cast("IO[bytes]", stream))
            write_message(cast("IO[bytes]", stream), {"result": {"here": True}})

    thread = threading.Thread(target=answer)
    thread.start()
    asked.connect(1)
    assert [connection.gettimeout() for connection in connections] == [None]
    assert asked.ask("facts") == [{"here": True}]
    thread.join()
    with pytest.raises(ConnectionError, match="Broken pipe"):
        asked.ask("facts")
