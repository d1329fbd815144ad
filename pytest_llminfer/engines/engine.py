"""An engine as tests see it: typed questions, typed answers, one worker behind them."""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.engines.launch import local
from pytest_llminfer.engines.worker_process import WorkerProcess
from pytest_llminfer.errors import BadInputError, EngineError, EngineStartError, UnsupportedError
from pytest_llminfer.observations import (
    CacheReport,
    Calibration,
    EngineInfo,
    Generation,
    Layout,
    MemoryReport,
    Sampling,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence, Sized

    import numpy as np

    from pytest_llminfer.models.model import Model
    from pytest_llminfer.spec import EngineSpec

MAX_DEATHS = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """What it takes to start an engine, once and again after it died.

    timeout: seconds of silence after which the worker counts as hung. variables: for the worker's environment.
    progress: called with (phase, done, total). log: where the worker's output goes.
    on_load: called with the engine after every load: the first, a restart, and the one after a death.
    """

    spec: EngineSpec
    model: Model
    engine_args: Mapping[str, Any]
    variables: Mapping[str, str]
    timeout: float
    log: Path
    progress: Callable[[str, int, int], None] | None = None
    on_load: Callable[[Engine], None] | None = None


class Engine:
    """One loaded engine. Every method asks the worker; none imports a framework here.

    A worker that dies or hangs fails the request that saw it; the next request starts a fresh one, twice at the most,
    whether that one loads or not.
    """

    def __init__(self, launch: Launch) -> None:
        self.spec, self.model = launch.spec, launch.model
        self.loads = 0
        self._launch = launch
        self._deaths = 0
        self._end: str | None = None
        self._closed = False
        self._preparations: list[tuple[Callable[..., Any] | str, dict[str, Any]]] = []
        self._start()

    def _start(self) -> None:
        if self._deaths > MAX_DEATHS:
            raise EngineStartError(
                f"{self.spec} has died or failed to load {self._deaths} times and is not started again; last: {self._end}"
            )
        try:
            self._worker, answer = self._load()
        except Exception as error:
            self._count_death(error)
            raise
        self.loads += 1
        self.info = EngineInfo.from_message(answer)
        self._end = None
        self._closed = False
        if self._launch.on_load is not None:
            self._launch.on_load(self)
        for probe, arguments in self._preparations:
            self.run(probe, **arguments)

    def _load(self) -> tuple[WorkerProcess, dict[str, Any]]:
        launch = self._launch
        worker = WorkerProcess(local.start(launch.spec.environment, launch.variables, launch.log), launch.log)
        params = {
            "spec": {**launch.spec.to_dict(), "environment": ""},
            "model_path": launch.model.path,
            "engine_args": dict(launch.engine_args),
        }
        try:
            return worker, worker.request("load", params, timeout=launch.timeout, progress=launch.progress)
        except BaseException:
            worker.kill()
            raise

    def _count_death(self, error: Exception) -> None:
        self._deaths += 1
        self._end = (str(error).splitlines() or [type(error).__name__])[0]

    def _ask(self, method: str, *, capability: str = "", **params: Any) -> Any:
        capability = capability or method
        if capability not in self.info.capabilities:
            raise UnsupportedError(f"{self.spec.engine} cannot answer {capability!r}")
        if self._closed:
            raise EngineError(f"{self.spec} was closed and cannot answer {method!r}; restart() loads it anew")
        if self._end is not None:
            self._start()
        try:
            return self._worker.request(method, params, timeout=self._launch.timeout, progress=self._launch.progress)
        except EngineError as error:
            if self._worker.ended:
                self._count_death(error)
            raise

    @property
    def engine_args(self) -> Mapping[str, Any]:
        """What the engine was given beside its cell and model."""
        return self._launch.engine_args

    def supports(self, capability: str) -> bool:
        """Whether the engine answers this request, by its name in ``EngineInfo.capabilities``."""
        return capability in self.info.capabilities

    def generate(
        self,
        prompts: Sequence[Sequence[int] | str],
        sampling: Sampling | None = None,
        *,
        max_tokens: int = 64,
        ignore_eos: bool = False,
        logprobs: int = 0,
        route: str = "engine",
    ) -> list[Generation]:
        """One answer a prompt, in order; prompts are token ids or text.

        ``sampling`` says everything at once; without it decoding is greedy with ``max_tokens`` and ``ignore_eos``.
        ``route``: ``engine``, ``loop`` (a hand-written loop over the cache) or ``no_cache``.
        """
        chosen = sampling or Sampling(max_tokens=max_tokens, ignore_eos=ignore_eos)
        ids = [self.model.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        capability = "generate" if route == "engine" else f"generate:{route}"
        answer = self._ask(
            "generate", capability=capability, prompts=ids, sampling=chosen.to_dict(), logprobs=logprobs, route=route
        )
        self._check_count(ids, answer["outputs"])
        return [self._with_text(Generation.from_message(output)) for output in answer["outputs"]]

    def _check_count(self, asked: Sized, answers: Sized) -> None:
        """An answer that is missing cannot be told from one that is in another's place: none of them is used."""
        if len(asked) != len(answers):
            raise EngineError(f"{self.spec}: asked {len(asked)} prompts, {len(answers)} answers came back")

    def _with_text(self, generation: Generation) -> Generation:
        if generation.text is not None or not self.model.has_tokenizer:
            return generation
        return replace(generation, text=self.model.decode(generation.token_ids))

    def score(self, sequences: Sequence[Sequence[int]], *, route: str = "prefill") -> list[np.ndarray]:
        """Per sequence the log-probabilities (T-1,) in nats of its tokens, each given those before it."""
        answer = self._ask("score", sequences=[list(ids) for ids in sequences], route=route)
        self._check_count(sequences, answer["logprobs"])
        return list(answer["logprobs"])

    def layout(self) -> Layout:
        """Every stored tensor of the model, tied ones once, and which names are tied."""
        return Layout.from_message(self._ask("layout"))

    def memory(self, *, reset_peak: bool = False) -> MemoryReport:
        """Bytes by category; ``reset_peak`` starts the run peak anew after this reading."""
        return MemoryReport.from_message(self._ask("memory", reset_peak=reset_peak))

    def kv_cache(self, prompt: Sequence[int], *, extend: int) -> CacheReport:
        """The KV cache after a prompt, and after ``extend`` more tokens."""
        return CacheReport.from_message(self._ask("kv_cache", prompt=list(prompt), extend=extend))

    def settings(self) -> dict[str, Any]:
        """The resolved configuration and the engine's own defaults."""
        return dict(self._ask("settings"))

    def calibrate(self) -> Calibration:
        """What the device can do right now."""
        return Calibration.from_message(self._ask("calibrate"))

    def run(self, probe: Callable[..., Any] | str, /, **arguments: Any) -> Any:
        """What ``probe`` returns, called in the worker with the live model and ``arguments``.

        ``probe``: a function at the top level of a file that the engine's interpreter can import, or ``"path.py::function"``.
        Arguments and result are plain data and arrays.
        """
        path, function = _locate(probe)
        return self._ask("run", path=path, function=function, arguments=arguments)["result"]

    def prepare(self, probe: Callable[..., Any] | str, /, **arguments: Any) -> None:
        """:meth:`run` a set-up of the live model now, and again whenever the engine is loaded anew."""
        self.run(probe, **arguments)
        self._preparations.append((probe, arguments))

    def restart(self) -> None:
        """End the worker and load the engine anew, with everything as it was first given or prepared."""
        self._worker.close()
        self._end = self._end or "ended for a restart"
        self._start()

    def close(self) -> None:
        """End the worker and all its processes, which frees the device."""
        self._closed = True
        self._worker.close()


def _locate(probe: Callable[..., Any] | str) -> tuple[str, str]:
    if isinstance(probe, str):
        path, separator, function = probe.partition("::")
        if not separator or not Path(path).is_file():
            raise BadInputError(f"a probe is named 'path/to/file.py::function'; {probe!r} is not, or the file does not exist")
        return os.path.abspath(path), function
    if "<" in probe.__qualname__ or "." in probe.__qualname__:
        raise BadInputError(
            f"the probe {probe.__qualname__!r} must be a function at the top level of its file: the worker imports it"
        )
    return os.path.abspath(inspect.getfile(probe)), probe.__name__
