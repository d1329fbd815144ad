"""Start the engines of a session, with its settings, and end them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer import options
from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.hardware import detect
from pytest_llminfer.judging import LOADS
from pytest_llminfer.report.progress import ProgressBar, attended

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

    from pytest_llminfer.models.model import Model
    from pytest_llminfer.spec import EngineSpec


class Launcher:
    """Called with a cell, its model and the engine's arguments; returns a loaded engine."""

    def __init__(self, config: pytest.Config, logs: Path) -> None:
        self._config, self._logs = config, logs
        self._engines: list[Engine] = []

    def __call__(
        self,
        spec: EngineSpec,
        model: Model,
        engine_args: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> Engine:
        """Load an engine. ``variables`` are set in the worker's environment only."""
        launch = Launch(
            spec=spec,
            model=model,
            engine_args=engine_args or {},
            variables=variables or {},
            timeout=self._config.stash[options.STASH].timeout,
            log=self._logs / f"worker-{len(self._engines)}.log",
            progress=self._progress(spec),
            on_load=self._count,
        )
        engine = Engine(launch)
        self._engines.append(engine)
        self._refuse_fallback(engine)
        return engine

    def _count(self, engine: Engine) -> None:
        self._config.stash[LOADS].append({"cell": str(engine.spec), "seconds": sum(engine.info.load_seconds.values())})

    def _refuse_fallback(self, engine: Engine) -> None:
        """An engine that fell back to the processor is the classic broken upgrade: a build without CUDA, a driver too old."""
        if engine.info.device != "cpu" or engine.spec.engine == "simulated":
            return
        found = detect()
        if found.accelerator:
            engine.close()
            raise EngineStartError(
                f"{engine.spec} runs on the CPU although there is {found.describe()}: its build has no CUDA, or driver and CUDA "
                "do not match; to test on the CPU on purpose, hide the GPUs: CUDA_VISIBLE_DEVICES= pytest …"
            )

    def close(self) -> None:
        """End every engine started here."""
        while self._engines:
            self._engines.pop().close()

    def _progress(self, spec: EngineSpec) -> ProgressBar | None:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if capture is None or hasattr(self._config, "workerinput"):
            return None
        uncaptured = capture.global_and_fixture_disabled
        with uncaptured():
            return ProgressBar(str(spec), uncaptured) if attended() else None
