"""Start the engines of a session, with its settings, and end them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer import options
from pytest_llminfer.engines.engine import Engine, Launch
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
        )
        engine = Engine(launch)
        self._engines.append(engine)
        self._config.stash[LOADS].append({"cell": str(spec), "seconds": sum(engine.info.load_seconds.values())})
        return engine

    def close(self) -> None:
        """End every engine started here."""
        for engine in self._engines:
            engine.close()

    def _progress(self, spec: EngineSpec) -> ProgressBar | None:
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if capture is None or hasattr(self._config, "workerinput") or not attended():
            return None
        return ProgressBar(str(spec), capture.global_and_fixture_disabled)
