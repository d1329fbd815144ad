"""A server as a child process: what is said when it does not start, dies, or does not stop. The servers are small scripts."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pytest_llminfer.errors import BadInputError, EngineDiedError, EngineStartError, OutOfMemoryError, UnsupportedError
from pytest_llminfer.observations.generation import Sampling
from pytest_llminfer.spec import EngineSpec
from pytest_llminfer.worker.backends.serving import backend
from pytest_llminfer.worker.backends.serving.backend import ServedBackend
from pytest_llminfer.worker.backends.serving.command import Command, flags, private_file
from pytest_llminfer.worker.backends.serving.process import PortTakenError, ServerProcess, free_port, is_running
from tests.support.paths import REFERENCE
from tests.support.present import present

KEY = "secret-key-of-the-server"
ANSWERS = """
    import http.server, os, signal, sys, threading
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404); self.send_header("Content-Length", "0"); self.end_headers()
        def log_message(self, *_): pass
    server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print("the key is", os.environ["KEY"], flush=True)
    {then}
    server.serve_forever()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., ServerProcess]]:
    servers = []

    def start(code: str) -> ServerProcess:
        port = free_port()
        command = Command((sys.executable, "-c", textwrap.dedent(code), str(port)), {"KEY": KEY})
        servers.append(ServerProcess(command, variables={}, key=KEY, address=f"http://127.0.0.1:{port}"))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def ready(server: ServerProcess) -> list[tuple[str, int, int]]:
    steps: list[tuple[str, int, int]] = []
    server.wait_until_ready(lambda *step: steps.append(step))
    return steps


def test_it_is_waited_for_stays_in_the_group_and_stops(
    start: Callable[..., ServerProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    talks = "import time\nfor _ in range(15): print('loading', flush=True); time.sleep(0.1)\n"
    server = start(talks + textwrap.dedent(ANSWERS.format(then="")))
    steps = ready(server)
    assert steps.count(("starting the server", 0, 1)) >= 2
    assert steps[-1] == ("starting the server", 1, 1)
    assert os.getpgid(server.pid) == os.getpgrp()
    ended = server.stop()
    assert (ended["status"], ended["left"]) == (-15, [])
    assert ended["seconds"] < 5
    said = capfd.readouterr().err
    assert "the key is ***" in said
    assert KEY not in said


@pytest.fixture
def foreign() -> Iterator[int]:
    """The port of a server of somebody else, which says that it is well whoever asks."""
    with HTTPServer(("127.0.0.1", 0), Well) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


class Well(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("then", ["import time; time.sleep(60)", "raise SystemExit('address in use')"])
@pytest.mark.fault("servers", "another server answers on the port of ours", "never taken for ours")
def test_what_answers_on_a_port_that_was_taken_is_not_the_server(foreign: int, then: str) -> None:
    command = Command((sys.executable, "-c", then), {})
    server = ServerProcess(command, variables={}, key=KEY, address=f"http://127.0.0.1:{foreign}")
    try:
        with pytest.raises(PortTakenError, match=rf"process {os.getpid()} answers at http://127.0.0.1:{foreign}, where"):
            ready(server)
    finally:
        server.stop()


def served_on(monkeypatch: pytest.MonkeyPatch, ports: list[int]) -> ServedBackend:
    monkeypatch.setattr(backend, "free_port", lambda: ports.pop(0))
    return ServedBackend(EngineSpec("simulated", serve=True), str(REFERENCE), {}, lambda *_: None)


@pytest.mark.fault("servers", "a port was taken between choosing and binding", "another one is tried, three in all")
def test_a_port_that_was_taken_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch, foreign: int) -> None:
    ports = [foreign, free_port()]
    server = served_on(monkeypatch, ports)
    try:
        assert server.load()["device"] == "cpu"
        assert not ports
    finally:
        server.close()
    server = served_on(monkeypatch, [foreign] * 3)
    with pytest.raises(EngineStartError, match=f"process {os.getpid()} answers at .*; 3 ports were taken one after another"):
        server.load()


@pytest.mark.parametrize(
    ("said", "least", "most"),
    [("", 1, 1), ("print('loading', flush=True)", 3, 5), ("sys.stderr.write('\\rloading'); sys.stderr.flush()", 3, 5)],
)
def test_only_what_it_prints_is_a_sign_of_life(start: Callable[..., ServerProcess], said: str, least: int, most: int) -> None:
    server = start(f"import sys, time\nwhile True:\n    {said or 'pass'}\n    time.sleep(0.1)")
    steps: list[tuple[str, int, int]] = []

    def wait() -> None:
        with pytest.raises(EngineStartError, match="before it answered"):
            server.wait_until_ready(lambda *step: steps.append(step))

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(3.7)
    server.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert least <= len(steps) <= most
    assert set(steps) == {("starting the server", 0, 1)}


def test_what_has_no_line_end_is_kept_too(start: Callable[..., ServerProcess]) -> None:
    server = start("import sys; sys.stdout.write('one\\n' + 'two' * 30000); sys.exit(1)")
    with pytest.raises(EngineStartError, match="exited with status 1") as caught:
        ready(server)
    assert "    one\n    twotwo" in str(caught.value)
    assert str(caught.value).endswith("two" * 3000)


def test_last_words_of_one_that_dies_do_not_hold_the_key(start: Callable[..., ServerProcess]) -> None:
    server = start("import os, sys; sys.exit(f'no such model, key {os.environ[\"KEY\"]}')")
    with pytest.raises(EngineStartError, match=r"(?s)exited with status 1 before it answered.*no such model, key \*\*\*"):
        ready(server)


def test_a_refused_argument_is_one_line(start: Callable[..., ServerProcess]) -> None:
    server = start("import argparse; argparse.ArgumentParser(prog='serve').parse_args(['--max-num-seqz', '4'])")
    with pytest.raises(EngineStartError, match="refuses its arguments") as caught:
        ready(server)
    assert str(caught.value) == "the server refuses its arguments: serve: error: unrecognized arguments: --max-num-seqz 4"


@pytest.mark.parametrize("words", ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "MemoryError"])
def test_memory_that_does_not_suffice_is_named(start: Callable[..., ServerProcess], words: str) -> None:
    server = start(f"import sys; print({words!r}); print('and some more'); sys.exit(1)")
    with pytest.raises(OutOfMemoryError, match=words.split("(", maxsplit=1)[0][:20]):
        ready(server)


def test_one_that_will_not_stop_is_killed_with_its_child(
    start: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_llminfer.worker.backends.serving.process.STOP_SECONDS", 1.0)
    then = "signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork(); child or [signal.pause() for _ in range(9)]"
    server = start(ANSWERS.format(then=then))
    ready(server)
    ended = server.stop()
    assert ended["status"] is None
    (child,) = ended["left"]
    deadline = time.monotonic() + 5
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)
    assert not server.alive


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineStartError, match=r"cannot start the interpreter .*No such file"):
        ServerProcess(Command((str(tmp_path / "python"),)), variables={}, key=KEY, address="http://127.0.0.1:1")


def test_flags_and_private_files(tmp_path: Path) -> None:
    given = {"max_num_seqs": 4, "enforce_eager": True, "enable_chunked_prefill": False, "a": None, "b": [1, 2], "c": {"d": 1}}
    assert flags(given) == [
        "--max-num-seqs", "4", "--enforce-eager", "--no-enable-chunked-prefill", "--b", "1", "2", "--c", '{"d": 1}',
    ]  # fmt: skip
    file = private_file(tmp_path, "config", KEY)
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def serve() -> Iterator[Callable[..., ServedBackend]]:
    pytest.importorskip("openai")
    backends = []

    def serve(engine: str = "simulated", **engine_args: Any) -> ServedBackend:
        spec = EngineSpec(engine, serve=True)
        backends.append(ServedBackend(spec, str(REFERENCE), {"max_retries": 0, **engine_args}, lambda *_: None))
        vars(backends[-1])["info"] = backends[-1].load()
        return backends[-1]

    yield serve
    for served in backends:
        served.close()


def generate(backend: ServedBackend, max_tokens: int = 4) -> list[int]:
    sampling = Sampling(max_tokens).to_dict()
    return backend.generate(prompts=[[5, 6, 7]], sampling=sampling)["outputs"][0]["token_ids"]


def test_a_server_that_dies_while_it_is_asked_has_died(serve: Callable[..., ServedBackend]) -> None:
    # The probes at load are two requests of one token.
    backend = serve(fault="crash", fault_after=1)
    with pytest.raises(EngineDiedError, match="the server was killed by SIGSEGV while it was asked"):
        generate(backend)


def test_a_server_that_was_stopped_is_started_again(serve: Callable[..., ServedBackend]) -> None:
    backend = serve()
    first, pid = generate(backend), present(backend._server).pid
    assert backend.stop()["status"] == 0
    assert not is_running(pid)
    assert generate(backend) == first
    assert present(backend._server).pid != pid


def test_what_cannot_be_served_is_refused_before_anything_starts(serve: Callable[..., ServedBackend]) -> None:
    with pytest.raises(UnsupportedError, match="transformers has no server of its own"):
        serve("transformers")
    with pytest.raises(BadInputError, match="server_variables must be an object of texts, and 'A' is a int"):
        serve(server_variables={"A": 1})
    with pytest.raises(BadInputError, match="server_variables must be an object of texts, not a str") as caught:
        serve(server_variables="HF_TOKEN=hidden")
    assert "hidden" not in str(caught.value)
    with pytest.raises(BadInputError, match="unknown engine argument 'concurency'"):
        serve(concurency=2)


@pytest.mark.parametrize("name", ["HF_TOKEN", "VLLM_API_KEY", "AWS_SECRET", "proxy_password", "TOKEN"])
def test_secrets_are_no_variables_of_the_server(serve: Callable[..., ServedBackend], name: str) -> None:
    with pytest.raises(BadInputError, match=f"server_variables holds '{name}'.*in the environment of pytest") as caught:
        serve(server_variables={name: "hidden"})
    assert "hidden" not in str(caught.value)


def test_variables_that_only_sound_like_secrets_are_the_servers(serve: Callable[..., ServedBackend]) -> None:
    backend = serve(server_variables={"KEYBOARD": "de", "MAX_TOKENS": "3"})
    variables = Path(f"/proc/{present(backend._server).pid}/environ").read_bytes().split(b"\0")
    assert {b"KEYBOARD=de", b"MAX_TOKENS=3"} <= set(variables)


@pytest.mark.parametrize("engine", ["llamacpp", "sglang", "simulated", "vllm"])
def test_a_cell_without_its_interpreter_is_one_line(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    spec = EngineSpec(engine, environment=str(tmp_path / "python"), serve=True)
    backend = ServedBackend(spec, str(REFERENCE), {}, lambda *_: None)
    with pytest.raises(
        EngineStartError, match=r"^cannot start the interpreter .*/python: No such file or directory; give "
    ) as caught:
        backend.load()
    assert "\n" not in str(caught.value)
