"""The client's side of a worker: every way in which the process can end, and what the request is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.engines import worker_process
from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.engines.replica import Replica
from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.errors import BadInputError, EngineDiedError, EngineError, EngineHungError, EngineStartError
from pytest_llminfer.models.model import Model
from pytest_llminfer.spec import EngineSpec

ANSWERING = """
import sys
from pytest_llminfer.worker.protocol.frames import read_message, write_message
while (message := read_message(sys.stdin.buffer)) is not None:
    write_message(sys.stdout.buffer, {"id": message["id"], "result": message["params"]})
"""
PROBES = """
import sys

def interrupt(model):
    raise KeyboardInterrupt

def leave(model):
    sys.exit(5)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start a Python program as a worker; all are ended with the test."""
    started = []

    def start(program: str) -> WorkerProcess:
        log = tmp_path / "log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                start_new_session=True,
            )
        started.append(WorkerProcess(process, log))
        return started[-1]

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Load the simulated engine; all are ended with the test."""
    engines = []

    def launch(on_load: Callable[..., None] | None = None, **fields: Any) -> Engine:
        spec = EngineSpec("simulated")
        settings = {"engine_args": {}, "variables": {}, "timeout": 60.0, "log": tmp_path / "log", **fields}
        engines.append(Engine(Launch(spec, Model("reference"), **settings), on_load=on_load))
        return engines[-1]

    yield launch
    for engine in engines:
        engine.close()


def test_a_worker_is_killed_once(start: Callable[..., WorkerProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start(ANSWERING)
    killed: list[tuple[int, ...]] = []
    real = os.killpg

    def kill(*call: int) -> None:
        killed.append(call)
        real(*call)

    monkeypatch.setattr(os, "killpg", kill)
    worker.kill()
    worker.kill()
    worker.close()
    assert len(killed) == 1
    assert worker.ended
    assert not worker.alive


@pytest.mark.fault("processes", "a killed process stays, in the kernel", "told, with what it may hold")
def test_a_process_that_cannot_be_ended_is_told(start: Callable[..., WorkerProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = start(ANSWERING)
    monkeypatch.setattr(worker_process, "KILL_SECONDS", 0.2)
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    process, pid = worker.process, worker.process.pid
    wait = process.wait

    def never(timeout: Any) -> None:
        raise subprocess.TimeoutExpired("worker", timeout)

    monkeypatch.setattr(process, "wait", never)
    with pytest.warns(ResourceWarning, match=f"process {pid} was killed 0.2 s ago and is still there"):
        worker.kill()
    process.kill()
    wait(timeout=10)


def test_an_ended_worker_says_so(start: Callable[..., WorkerProcess]) -> None:
    worker = start(ANSWERING)
    worker.kill()
    with pytest.raises(EngineError, match="has been ended and cannot answer 'layout'"):
        worker.request("layout", {}, timeout=5)


@pytest.mark.fault("processes", "a worker dies between two requests", "the next request says so")
def test_a_death_between_requests_is_reported(start: Callable[..., WorkerProcess]) -> None:
    worker = start("raise SystemExit(4)")
    worker.process.wait()
    with pytest.raises(EngineDiedError, match="exited with status 4 during 'layout'"):
        worker.request("layout", {"many": list(range(100_000))}, timeout=5)
    assert worker.ended


@pytest.mark.parametrize(
    ("params", "what"),
    [
        ({"arguments": {"x": [1, Path()]}}, r"arguments\['x'\]\[1\] is a PosixPath"),
        ({"x": np.array([None])}, "x is a ndarray of object"),
        ({"x": {1, 2}}, "x is a set"),
    ],
)
def test_what_cannot_be_sent_is_named(start: Callable[..., WorkerProcess], params: dict[str, Any], what: str) -> None:
    worker = start(ANSWERING)
    with pytest.raises(BadInputError, match=f"^'run' cannot be sent to the worker: {what}; "):
        worker.request("run", params, timeout=5)
    assert not worker._busy
    assert worker.request("run", {"x": 1}, timeout=20) == {"x": 1}


def test_what_holds_itself_is_refused(start: Callable[..., WorkerProcess]) -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(BadInputError, match="'run' was given something that holds itself"):
        start(ANSWERING).request("run", {"x": endless}, timeout=5)


@pytest.mark.fault("processes", "a worker dies and its child holds the pipe", "the death is seen")
def test_a_death_is_seen_though_a_child_holds_the_pipe(start: Callable[..., WorkerProcess]) -> None:
    worker = start("import os, sys, time\nsys.stdin.buffer.read(1)\nif os.fork() == 0: time.sleep(100)\nos._exit(6)")
    begin = time.monotonic()
    with pytest.raises(EngineDiedError, match="exited with status 6 during 'layout'"):
        worker.request("layout", {}, timeout=60)
    assert time.monotonic() - begin < 20


def test_a_child_that_left_the_group_does_not_block_the_end(start: Callable[..., WorkerProcess]) -> None:
    worker = start("import os, sys, time\nsys.stdin.buffer.read(1)\nif os.fork() == 0: os.setsid(); time.sleep(8)\nos._exit(6)")
    begin = time.monotonic()
    with pytest.raises(EngineDiedError, match="exited with status 6"):
        worker.request("layout", {}, timeout=60)
    assert time.monotonic() - begin < 7


@pytest.mark.fault("processes", "a worker says nothing", "ended at the limit")
def test_silence_ends_at_the_limit(start: Callable[..., WorkerProcess]) -> None:
    worker = start("import time; time.sleep(100)")
    begin = time.monotonic()
    with pytest.raises(EngineHungError, match=r"said nothing for 1\.5 s during 'layout'"):
        worker.request("layout", {}, timeout=1.5)
    assert 1.4 < time.monotonic() - begin < 5


@pytest.mark.fault("processes", "a worker does not read", "ended at the limit")
def test_a_request_that_is_not_read_ends_at_the_limit(start: Callable[..., WorkerProcess]) -> None:
    worker = start("import time; time.sleep(100)")
    begin = time.monotonic()
    with pytest.raises(EngineHungError, match=r"said nothing for 1\.5 s during 'generate'"):
        worker.request("generate", {"prompts": list(range(200_000))}, timeout=1.5)
    assert 1.4 < time.monotonic() - begin < 5
    assert worker.ended


@pytest.mark.parametrize(("method", "error"), [("load", EngineStartError), ("layout", EngineError)])
@pytest.mark.parametrize("then", ["", "; import time; time.sleep(100)"])
@pytest.mark.fault("processes", "something else writes between messages", "quoted")
def test_foreign_output_is_quoted(start: Callable[..., WorkerProcess], method: str, error: type[Exception], then: str) -> None:
    worker = start(f"import os; os.write(1, b'hello\\n'){then}")
    with pytest.raises(error, match=r"standard output before the worker took over: b'hello\\n', which was met") as caught:
        worker.request(method, {}, timeout=20)
    assert type(caught.value) is error
    assert worker.ended


def test_foreign_output_is_quoted_where_its_writer_has_ended_before_it_is_asked(
    start: Callable[..., WorkerProcess],
) -> None:
    worker = start("import os; os.write(1, b'hello\\n')")
    worker.process.wait(timeout=20)
    with pytest.raises(EngineStartError, match=r"took over: b'hello\\n', which was met"):
        worker.request("load", {}, timeout=20)


@pytest.mark.fault("processes", "an answer is cut short", "a death")
def test_an_answer_cut_short_is_a_death(start: Callable[..., WorkerProcess]) -> None:
    worker = start("import os; os.write(1, b'LLM1' + (1000).to_bytes(4, 'little') + b'{'); os._exit(7)")
    with pytest.raises(EngineDiedError, match="exited with status 7"):
        worker.request("layout", {}, timeout=20)


@pytest.mark.fault("processes", "an answer is no message", "told")
def test_an_answer_that_is_no_message_is_told(start: Callable[..., WorkerProcess]) -> None:
    worker = start("import os, time; os.write(1, b'LLM1' + (1).to_bytes(4, 'little') + b'{'); time.sleep(100)")
    with pytest.raises(EngineError, match="'layout'; the process was killed"):
        worker.request("layout", {}, timeout=20)


@pytest.mark.parametrize(("function", "what"), [("interrupt", "KeyboardInterrupt"), ("leave", "SystemExit: 5")])
def test_an_interrupt_in_the_worker_is_an_answer(launch: Callable[..., Engine], tmp_path: Path, function: str, what: str) -> None:
    (tmp_path / "probes.py").write_text(PROBES)
    engine = launch()
    with pytest.raises(EngineError, match=f"^{what}"):
        engine.run(f"{tmp_path / 'probes.py'}::{function}")
    assert engine.memory().weights_bytes > 0
    assert engine.loads == 1


def test_every_load_is_reported(launch: Callable[..., Engine]) -> None:
    loads = []
    engine = launch(engine_args={"fault": "exit"}, on_load=lambda _, info: loads.append(info.load_seconds))
    engine.restart()
    with pytest.raises(EngineDiedError, match="exited with status 3"):
        engine.generate([[5]], max_tokens=1)
    assert len(engine.score([[5, 6]])) == 1
    assert len(loads) == engine.loads == 3


@pytest.mark.parametrize(("ask", "answer"), [("generate", {"outputs": []}), ("score", {"logprobs": [1, 2]})])
@pytest.mark.fault("processes", "an engine gives too many or too few answers", "an error")
def test_a_wrong_number_of_answers_is_an_error(
    launch: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, ask: str, answer: Any
) -> None:
    engine = launch()
    monkeypatch.setattr(Replica, "ask", lambda *_, **__: answer)
    count = len(next(iter(answer.values())))
    with pytest.raises(EngineError, match=f"asked 1 prompts, {count} answers came back"):
        getattr(engine, ask)([[5, 6]])
