"""A cell that is served: the engine's own server is started, asked over HTTP, and stopped."""

from __future__ import annotations

import importlib
import re
import secrets
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, EngineError, EngineStartError, UnsupportedError
from pytest_llminfer.worker.backends.host import accelerator_name, processor_name
from pytest_llminfer.worker.backends.openai.arguments import NAMES
from pytest_llminfer.worker.backends.openai.backend import OpenaiBackend
from pytest_llminfer.worker.backends.packages import require
from pytest_llminfer.worker.backends.serving.command import Order
from pytest_llminfer.worker.backends.serving.process import PortTakenError, ServerProcess, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.serving.command import Command

SERVERS = ("llamacpp", "sglang", "simulated", "vllm")
_PORTS = 3
"""How many are tried."""
VARIABLES = "server_variables"
"""The engine argument with environment variables for the server alone."""
_SECRET = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)


class ServedBackend(OpenaiBackend):
    """The server of the engine ``spec.engine`` in the interpreter ``spec.environment`` (empty: this one).

    Of ``engine_args``, those that the openai engine knows are the client's; ``server_variables`` are environment variables
    of the server; the rest are its command-line flags.
    """

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        super().__init__(spec, model_path, {name: value for name, value in engine_args.items() if name in NAMES}, progress)
        self._server_args = {name: value for name, value in engine_args.items() if name not in (*NAMES, VARIABLES)}
        self._variables = engine_args.get(VARIABLES, {})
        _check_variables(self._variables)
        self._server: ServerProcess | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def load(self) -> Message:
        """Start the server, wait until it answers, and learn what it takes and gives.

        Raises:
            UnsupportedError: the engine has no server of its own.
            EngineStartError, OutOfMemoryError: the server ended before it answered.
        """
        if self._spec.engine not in SERVERS:
            raise UnsupportedError(f"{self._spec.engine} has no server of its own", f"use one of: {', '.join(SERVERS)}")
        require("openai", purpose="asking a server")
        return self._open()

    def _open(self) -> Message:
        try:
            return self._open_server()
        except BaseException:
            self.close()
            raise

    def _open_server(self) -> Message:
        started = time.perf_counter()
        gpu, key = accelerator_name(), secrets.token_urlsafe(24)
        command, address = self._start(gpu, key)
        ready = time.perf_counter()
        answer = self._connect(f"{address}/v1", key, ready, given=self._name)
        self.capabilities |= {"serving:stop"}
        dtype = command.dtype or answer["dtype"]
        return {
            **answer,
            "dtype": dtype,
            "kv_dtype": self._spec.kv_dtype if self._spec.kv_dtype != "auto" else command.kv_dtype or dtype,
            "device": command.device,
            "device_name": gpu if command.device == "cuda" else processor_name(),
            "device_count": self._spec.num_gpus if command.device == "cuda" else 1,
            "load_seconds": {"server": ready - started, **answer["load_seconds"]},
        }

    @property
    def _name(self) -> str:
        """What the model is called on the server."""
        return self._arguments.model or Path(self._model_path).name

    def _start(self, gpu: str, key: str) -> tuple[Command, str]:
        """A live server, and its address; on another port where one was taken before the server could bind it."""
        taken = ""
        for _ in range(_PORTS):
            try:
                return self._start_on(free_port(), gpu, key)
            except PortTakenError as error:
                taken = str(error)
                self.close()
        raise EngineStartError(f"{taken}; {_PORTS} ports were taken one after another, each before the server could bind it")

    def _start_on(self, port: int, gpu: str, key: str) -> tuple[Command, str]:
        engine = importlib.import_module(f"pytest_llminfer.worker.backends.serving.{self._spec.engine}")
        self._folder = tempfile.TemporaryDirectory(prefix="llminfer-server-")
        order = Order(
            spec=self._spec,
            interpreter=self._spec.environment or sys.executable,
            model_path=self._model_path,
            name=self._name,
            port=port,
            key=key,
            arguments=self._server_args,
            folder=Path(self._folder.name),
            gpu=gpu,
            progress=self._progress,
        )
        command: Command = engine.command(order)
        if command.api and not self._arguments.api:
            self._arguments = replace(self._arguments, api=command.api)
        address = f"http://127.0.0.1:{port}"
        self._server = ServerProcess(command, variables=self._variables, key=key, address=address)
        self._server.wait_until_ready(self._progress)
        self._server.unname_shared_memory()
        # What stands there has been read by now, and a worker that is killed could not remove it.
        self._folder.cleanup()
        return command, address

    def generate(self, **request: Any) -> Message:
        """As of any server; one that was stopped is started again."""
        return self._asked(super().generate, **request)

    def score_top(self, **request: Any) -> Message:
        """As of any server; one that was stopped is started again."""
        return self._asked(super().score_top, **request)

    def talk(self, **request: Any) -> Message:
        """As of any server; one that was stopped is started again."""
        return self._asked(super().talk, **request)

    def settings(self) -> Message:
        """As of any server; one that was stopped is started again."""
        return self._asked(super().settings)

    def stop(self) -> Message:
        """Stop the server with SIGTERM; the fields of ``ServerProcess.stop``. The next request starts it again."""
        if self._server is None:
            self._open()
        return self._end()

    def close(self) -> None:
        """Stop the server, so that it can release what the end of its processes would not free."""
        if self._server is not None:
            self._end()
        if self._folder is not None:
            self._folder.cleanup()

    def _end(self) -> Message:
        server, self._server = self._server, None
        super().close()
        return server.stop() if server is not None else {}

    def _asked(self, ask: Callable[..., Message], **request: Any) -> Message:
        if self._server is None:
            self._open()
        try:
            return ask(**request)
        except EngineError:
            if self._server is not None and self._server.ends_soon():
                raise self._server.death("while it was asked") from None
            raise


def _check_variables(variables: Any) -> None:
    """Values are never shown: a wrong argument may hold a secret."""
    if not isinstance(variables, dict):
        raise BadInputError(f"{VARIABLES} must be an object of texts, not a {type(variables).__name__}")
    for name, value in variables.items():
        if _SECRET.search(name):
            raise BadInputError(
                f"{VARIABLES} holds {name!r}: arguments are recorded with baselines, so set it in the environment of pytest, "
                "which the server has as well"
            )
        if not isinstance(value, str):
            raise BadInputError(f"{VARIABLES} must be an object of texts, and {name!r} is a {type(value).__name__}")
