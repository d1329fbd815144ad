"""One worker and its life: started, asked, started again after a death, ended."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.launchers import local
from pytest_llminfer.engines.profiles import backend
from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.errors import EngineDiedError, EngineError, EngineStartError
from pytest_llminfer.hardware import visible_gpus
from pytest_llminfer.observations.engine import EngineInfo
from pytest_llminfer.worker.protocol.frames import ACCELERATOR

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_llminfer.engines.pool import Lease
    from pytest_llminfer.models.model import Model
    from pytest_llminfer.spec import EngineSpec

    Progress = Callable[[str, int, int], None]

MAX_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """What it takes to start a worker, the first time and again after it has died.

    Attributes:
        spec: The cell.
        model: What the cell serves.
        engine_args: Engine arguments by the engine's own names.
        variables: Variables for the worker's environment.
        timeout: Seconds of silence after which the worker counts as hung.
        log: File for the worker's output.
        progress: Called with (phase, done, total); None for no reports.
        lease: The accelerators of the whole cell; None where it takes none.
        index: Number of the worker, from 0, which decides its share of the lease.
        ahead: A worker started by :meth:`prestart` of an equal launch, used for the first load; None without one.
    """

    spec: EngineSpec
    model: Model
    engine_args: Mapping[str, Any]
    variables: Mapping[str, str]
    timeout: float
    log: Path
    progress: Progress | None = None
    lease: Lease | None = None
    index: int = 0
    ahead: WorkerProcess | None = None

    def environment(self) -> tuple[str, str]:
        """The worker's interpreter (empty: this one), and the environment that its backend gets."""
        spec = self.spec
        if spec.is_remote:
            return "", spec.environment
        interpreter = spec.environment
        if "==" in interpreter:
            from pytest_llminfer.engines.environments import interpreter as make

            interpreter = make(spec.environment, progress=self.progress)
        # The client of a server runs here, with our own packages; the server itself runs in the engine's interpreter.
        return ("", interpreter) if spec.serve else (interpreter, "")

    def acquire_devices(self) -> dict[str, str]:
        """Acquire the cell's accelerators, if it has none yet; the variables of this worker, which name its share of them.

        Raises:
            EngineStartError: they were not free within the time limit.
        """
        found = dict(self.variables)
        if self.lease is not None:
            share = self.spec.num_gpus // self.spec.workers
            ids = self.lease.ids()[self.index * share : (self.index + 1) * share]
            found = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(ids), **found}
        # The worker of a server is a client: it has no framework to ask for the name.
        if self.spec.serve and (gpus := visible_gpus({**os.environ, **found})):
            found[ACCELERATOR] = gpus[0].name
        return found

    def params(self, environment: str) -> dict[str, Any]:
        """The parameters of the worker's request ``load``."""
        return {
            "spec": {**self.spec.replica.to_dict(), "environment": environment},
            "model_path": self.model.path,
            "engine_args": dict(self.engine_args),
            **backend(self.spec.engine),
        }

    def start_worker(self) -> tuple[WorkerProcess, dict[str, Any]]:
        """A new worker, and the parameters of its request ``load``."""
        interpreter, environment = self.environment()
        settings = self.acquire_devices()
        folder = local.scratch()
        process = local.start(interpreter, settings, self.log, folder)
        return WorkerProcess(process, self.log, folder), self.params(environment)

    def prestart(self) -> WorkerProcess:
        """A worker that imports the engine while others still work; it touches no device."""
        worker, params = self.start_worker()
        worker.begin("warm", params)
        return worker


class Replica:
    """One replica of an engine. A worker that dies or hangs fails the request under way; the next request starts a new one, at
    most twice, whether that one loads or not.
    """

    def __init__(self, launch: Launch, on_load: Callable[[], None]) -> None:
        self.launch = launch
        self.loads = 0
        self.info: EngineInfo
        self._on_load = on_load
        self._worker: WorkerProcess | None = None
        self._deaths = 0
        self._end: str | None = "not started"
        self._closed = False

    def start(self) -> None:
        """Start a worker and load the engine.

        Raises:
            EngineStartError: it has died or failed too often, or cannot be loaded.
        """
        spec = self.launch.spec
        if self._deaths > MAX_DEATHS:
            raise EngineStartError(
                f"{spec} has died or failed to load {self._deaths} times and is not started again; last: {self._end}"
            )
        try:
            answer = self._load()
        except Exception as error:
            self._count_death(error)
            raise
        self.loads += 1
        self.info = EngineInfo.from_message(answer)
        self._end = None
        try:
            self._on_load()
        except Exception as error:
            # Without the preparations of its test the engine would be another one.
            self._end_worker()
            if self._end is None:
                self._count_death(error)
            raise

    def _load(self) -> dict[str, Any]:
        launch = self.launch
        if launch.ahead is not None and self._worker is None and launch.ahead.alive:
            worker, params = launch.ahead, launch.params(launch.environment()[1])
        else:
            worker, params = launch.start_worker()
        self._worker = worker
        try:
            if self._closed:
                # Closed from another thread, where an interrupt was met, while this one was starting.
                raise EngineStartError(f"{launch.spec} was closed while it was started")  # noqa: TRY301 - ended below
            answer: dict[str, Any] = worker.request("load", params, timeout=launch.timeout, progress=launch.progress)
        except BaseException:
            worker.kill()
            raise
        return answer

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        self._end = _first_line(error)

    def ask(self, method: str, params: Mapping[str, Any], progress: Progress | None = None) -> Any:
        """The worker's answer; a worker that has ended is restarted first.

        Raises:
            EngineError: the replica was closed; and whatever :meth:`WorkerProcess.request` raises.
        """
        if self._closed:
            raise EngineError(f"{self.launch.spec} was closed and cannot answer {method!r}; restart() loads it anew")
        if self._end is not None or self._worker is None:
            self.start()
        worker = self._worker
        if worker is None:
            raise EngineError(f"{self.launch.spec} has no worker")
        try:
            return worker.request(method, params, timeout=self.launch.timeout, progress=progress or self.launch.progress)
        except EngineError as error:
            if isinstance(error, EngineDiedError) and not worker.ended:
                # A process of the engine has died and its worker lives on: the rest of the group goes too.
                worker.kill()
            if worker.ended:
                self._count_death(error)
            raise

    def restart(self) -> None:
        """End the worker and reload the engine."""
        self.end("ended for a restart")
        self._closed = False
        self.start()

    def end(self, reason: str) -> None:
        """End the worker and all its processes."""
        self._end_worker()
        self._end = self._end or reason

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def close(self) -> None:
        """End the worker for good."""
        self._closed = True
        self.end("closed")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
