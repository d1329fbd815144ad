"""Start the engines of a session, with its settings and its accelerators, and end them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.engine import Engine, Launch
from pytest_llminfer.engines.launchers.local import default_threads
from pytest_llminfer.engines.pool import WAIT_SECONDS, Pool
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.errors import EngineStartError, LlminferError, UnsupportedError
from pytest_llminfer.hardware import detect, usable_cores, visible_gpus
from pytest_llminfer.models.model import Model
from pytest_llminfer.plugin import prestart
from pytest_llminfer.plugin.judging import LOADS
from pytest_llminfer.plugin.session import settings_of
from pytest_llminfer.report.progress import Notice, ProgressBar, attended

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

    from pytest_llminfer.observations.engine import EngineInfo
    from pytest_llminfer.spec import EngineSpec


_HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


class Launcher:
    """Called with a cell, its model and the engine's arguments; returns a loaded engine."""

    def __init__(self, config: pytest.Config, logs: Path) -> None:
        self._config, self._logs = config, logs
        self._timeout = settings_of(config).session.timeout
        self._engines: list[Engine] = []

    def __call__(
        self,
        spec: EngineSpec,
        model: Model,
        engine_args: Mapping[str, Any] | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        beside: bool = False,
    ) -> Engine:
        """Load an engine. ``variables`` are set in the workers' environment only. beside: on the processor, next to an engine that
        holds the accelerators.
        """
        if beside:
            engine = Engine(*self._launches(spec, model, engine_args or {}, {**(variables or {}), **_HIDDEN}))
            self._engines.append(engine)
            return engine
        pool = Pool(
            visible_gpus(),
            timeout=max(self._timeout, WAIT_SECONDS),
            held=self._config.stash.setdefault(prestart.HELD, {}),
            make_room=partial(prestart.take, self._config, None),
        )
        # What was started ahead has the session's variables, not those of a test.
        started = prestart.take(self._config, None if variables else spec)
        _check_devices(spec, len(pool.gpus))
        launches = self._launches(spec, model, engine_args or {}, variables or {})
        if started is not None:
            launches = [
                replace(launch, lease=started.lease, ahead=worker) for launch, worker in zip(launches, started.workers, strict=True)
            ]
        elif pool.gpus and profile(spec.engine).takes_gpus:
            lease = pool.lease(spec.num_gpus, launches[0].progress or self._notice(spec), str(spec))
            launches = [replace(launch, lease=lease) for launch in launches]
        engine = Engine(*launches, on_load=self._count)
        self._engines.append(engine)
        self._refuse_fallback(engine)
        self._start_next(spec, pool)
        return engine

    def _launches(
        self, spec: EngineSpec, model: Model, engine_args: Mapping[str, Any], variables: Mapping[str, str], name: str = "worker"
    ) -> list[Launch]:
        progress = self._progress(spec)
        return [
            Launch(
                spec=spec,
                model=model,
                engine_args=engine_args,
                variables={**_threads(spec), **variables},
                timeout=self._timeout,
                log=self._logs / f"{name}-{len(self._engines)}-{index}.log",
                progress=progress,
                index=index,
            )
            for index in range(spec.workers)
        ]

    def _start_next(self, spec: EngineSpec, pool: Pool) -> None:
        after = prestart.following(self._config, spec)
        if after is None or not profile(after.engine).takes_gpus or after.num_gpus > len(pool.gpus):
            return
        lease = pool.lease_now(after.num_gpus, str(after))
        if lease is None:
            return
        try:
            model = Model(after.model, weights=after.weights)
        except LlminferError:
            lease.release()
            return
        prestart.start(self._config, self._launches(after, model, {}, {}, name="ahead"), lease)

    def _count(self, engine: Engine, info: EngineInfo) -> None:
        afresh = engine.loads > engine.spec.workers
        told = {name: getattr(info, name) for name in ("device", "device_name", "device_count", "dtype", "kv_dtype")}
        load = {
            "cell": str(engine.spec),
            "spec": engine.spec.to_dict(),
            "phases": dict(info.load_seconds),
            "afresh": afresh,
            "model": engine.model.id,
        }
        self._config.stash.setdefault(LOADS, []).append({**load, **told, "versions": dict(info.versions)})

    def _refuse_fallback(self, engine: Engine) -> None:
        """An engine that fell back to the processor is the classic broken upgrade: a build without CUDA, a driver too old."""
        if engine.info.device != "cpu" or not profile(engine.spec.engine).takes_gpus:
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

    def _notice(self, spec: EngineSpec) -> Notice:
        """Waiting for other sessions may take hours, which a log should say too."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        return Notice(str(spec), capture.global_and_fixture_disabled if capture else contextlib.nullcontext)


def _check_devices(spec: EngineSpec, gpus: int) -> None:
    """A cell that asks for more than there is cannot run here: a visible skip."""
    if profile(spec.engine).remote:
        return
    if gpus and profile(spec.engine).takes_gpus:
        if spec.num_gpus > gpus:
            raise UnsupportedError(
                f"{spec} needs {spec.num_gpus} GPUs, and {gpus} {'are' if gpus > 1 else 'is'} visible here",
                "make more visible with CUDA_VISIBLE_DEVICES, or use fewer with --gpus, --tp, --pp and --dp",
            )
    elif spec.num_gpus > usable_cores():
        raise UnsupportedError(
            f"{spec} needs {spec.num_gpus} processes at once, and here are no GPU and {usable_cores()} usable cores",
            "use fewer with --gpus, --tp, --pp and --dp, or a machine with more",
        )


def _threads(spec: EngineSpec) -> dict[str, str]:
    """Replicas share the processor: threads of all of them together stay below its cores."""
    if spec.workers == 1 or os.environ.get("OMP_NUM_THREADS"):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, int(default_threads()) // spec.workers))}
