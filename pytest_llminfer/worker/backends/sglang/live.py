"""A running engine, whose death this process survives and notices."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import time
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineDiedError, EngineError, LlminferError
from pytest_llminfer.worker.backends.sglang import arguments, deaths
from pytest_llminfer.worker.backends.sglang.processes import Watch
from pytest_llminfer.worker.backends.sglang.schedulers import Schedulers

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Progress

LOOK_SECONDS = 0.5
_IDLE_SECONDS = 20.0
_PAUSE_SECONDS = 0.02
_EXIT_SECONDS = 3.0
"""How long a failing scheduler may take from its last words to its end."""


class LiveEngine:
    """SGLang's ``Engine`` and its schedulers. After a death every request is answered with that."""

    def __init__(self, engine: Any, schedulers: Schedulers, progress: Progress) -> None:
        self.engine, self.schedulers = engine, schedulers
        self._progress = progress
        self._death: EngineError | None = None
        self._children = {child.pid: child for child in multiprocessing.active_children() if child.pid is not None}
        self._watch = Watch({*self._children, *schedulers.pids})

    @classmethod
    def start(cls, spec: EngineSpec, engine_arguments: Mapping[str, Any], progress: Progress) -> LiveEngine:
        """Start the engine and reach its schedulers.

        Raises:
            OutOfMemoryError, EngineStartError, EngineDiedError: with what a failing scheduler said last.
        """
        entry = importlib.import_module("sglang.srt.entrypoints.engine")
        if engine_arguments.get("device") == "cpu":
            cores = sorted(os.sched_getaffinity(0))
            # One core for the rest of the machine: threads that spin for each other on a busy one are many times slower.
            os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (len(cores) - 1) // spec.num_gpus)))
            if spec.tp > 1:
                os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", arguments.core_bindings(cores, spec.tp))
        survival, schedulers = deaths.Survival(), Schedulers()
        survival.install()
        process_function = staticmethod(schedulers.process_function())
        engine_class = type("Engine", (entry.Engine,), {"run_scheduler_process_func": process_function})
        progress("starting sglang", 0, 1)
        try:
            engine = engine_class(**engine_arguments)
            schedulers.connect(spec.num_gpus)
            live = cls(engine, schedulers, progress)
            # The first request hangs SGLang's signal handlers on the loop.
            live.wait_for(engine.tokenizer_manager.get_internal_state(), doing="starting")
        except LlminferError:
            raise
        except BaseException as error:
            raise deaths.failed_start(error, schedulers.last_words()) from error
        finally:
            schedulers.forget_files()
        survival.started(engine.loop)
        progress("starting sglang", 1, 1)
        return live

    def wait_for(self, coroutine: Coroutine[Any, Any, Any], *, doing: str) -> Any:
        """What the coroutine gives, unless a process of the engine ends first."""
        return self.wait_for_all([coroutine], doing=doing)[0]

    def wait_for_all(self, coroutines: Iterable[Coroutine[Any, Any, Any]], *, doing: str, phase: str = "") -> list[Any]:
        """Results in order; all are under way at once. phase: reported to the progress, with how many are done.

        Raises:
            EngineDiedError, OutOfMemoryError: a process of the engine has ended.
            EngineError: SGLang refused a request.
        """
        waiting = list(coroutines)
        if self._death is not None:
            for coroutine in waiting:
                coroutine.close()
            raise self._death
        try:
            return list(self.engine.loop.run_until_complete(self._gather(waiting, doing, phase)))
        except (SystemExit, KeyboardInterrupt) as error:
            raise self._died(doing, f"{type(error).__name__}: {error}") from error
        except ValueError as error:
            # SGLang's word for a request that it does not take.
            raise EngineError(f"sglang refused a request while {doing}: {error}") from error

    async def _gather(self, coroutines: list[Coroutine[Any, Any, Any]], doing: str, phase: str) -> list[Any]:
        tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
        waiting, told = set(tasks), 0
        if phase:
            self._progress(phase, 0, len(tasks))
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    task.result()
                if waiting and self._failed():
                    raise self._died(doing)
                if phase and (count := len(tasks) - len(waiting)) != told:
                    self._progress(phase, told := count, len(tasks))
        finally:
            for task in waiting:
                task.cancel()
        return [task.result() for task in tasks]

    def ask(self, method: str, **params: Any) -> list[dict[str, Any]]:
        """One answer a rank, from inside the schedulers, in the order of their start.

        Raises:
            EngineDiedError, OutOfMemoryError: a process of the engine has ended.
        """
        self.check()
        try:
            return self.schedulers.ask(method, **params)
        except ConnectionError as error:
            raise self._died(f"answering {method!r}", str(error)) from error

    def check(self) -> None:
        """Raise the error of a dead engine: EngineDiedError, or OutOfMemoryError."""
        if self._death is None and self._failed():
            raise self._died("nothing was asked of it")
        if self._death is not None:
            raise self._death

    def _failed(self) -> bool:
        """Whether a process has ended, or a scheduler has said its last words: it may wait for this process to kill it."""
        return bool(self._watch.ended() or self.schedulers.last_words())

    def flush_cache(self) -> None:
        """Forget all cached prefixes.

        Raises:
            EngineError: a request is still under way.
        """
        # A scheduler answers the last request before it counts itself idle, and flushes nothing until then.
        end = time.monotonic() + _IDLE_SECONDS
        while not self.wait_for(self.engine.tokenizer_manager.flush_cache(), doing="flushing its cache").success:
            if time.monotonic() > end:
                raise EngineError(f"sglang did not flush its cache in {_IDLE_SECONDS:g} s: a request is still under way")
            time.sleep(_PAUSE_SECONDS)

    def _died(self, doing: str, word: str = "") -> EngineError:
        """Keep the death, and end what is left of the engine: half of it answers nothing and holds its memory."""
        end = time.monotonic() + _EXIT_SECONDS
        while not (ended := self._watch.ended()) and time.monotonic() < end:
            time.sleep(LOOK_SECONDS / 5)
        names = [f"{name or 'process'} (pid {pid}{self._exit_status(pid)})" for pid, name in sorted(ended.items())]
        self._watch.kill()
        error = deaths.death(doing, names, self.schedulers.last_words() or word)
        # Running out of memory is the answer once; from then on the engine is dead, and has to be restarted.
        self._death = EngineDiedError(f"the engine has ended before: {error}")
        return error

    def _exit_status(self, pid: int) -> str:
        """How a child of this process ended; empty for a grandchild, whose status its parent keeps."""
        if pid not in self._children:
            return ""
        # SGLang's watchdog asks too, in a thread: of two that ask at once, one learns nothing until the other has noted it.
        end = time.monotonic() + _EXIT_SECONDS
        while (code := self._children[pid].exitcode) is None and time.monotonic() < end:
            time.sleep(_PAUSE_SECONDS)
        if code is None:
            return ""
        return f", signal {-code}" if code < 0 else f", exit status {code}"
