"""The llama.cpp engine as a backend: checks that need no engine, then the live model."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import EngineStartError
from pytest_llminfer.worker.backends import probe, requests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.llamacpp.live import LiveModel

_HERE = "pytest_llminfer.worker.backends.llamacpp"
_HOST_ONLY = frozenset({"memory"})


class LlamacppBackend:
    """One GGUF model in llama.cpp. A model in transformers' format is converted at its first use, into the user's cache."""

    capabilities = frozenset(
        {
            "generate", "generate:loop", "generate:no_cache", "generate:logprobs", "score", "score:decode", "score_top",
            "layout", "memory", "kv_cache", "kv_pool", "ranks", "settings", "calibrate",
            "reference_step", "run",
        }
    )  # fmt: skip

    _live: LiveModel

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = engine_args

    def load(self) -> Message:
        """Look at the arguments, import the engine, convert, load.

        Raises:
            EngineStartError: llama_cpp is not installed, or the context cannot be set up.
            BadInputError, UnsupportedError: arguments or a model that cannot be loaded.
            OutOfMemoryError: the weights or the KV cache do not fit.
        """
        requests.check_parallelism(self._spec)
        if importlib.util.find_spec("llama_cpp") is None:
            raise EngineStartError(
                f"the engine {self._spec} needs llama_cpp, which {sys.executable} does not have; "
                f"install it with: {sys.executable} -m pip install llama-cpp-python gguf"
            )
        started = time.perf_counter()
        live = self._part("live")
        self._live = live.LiveModel.load(self._spec, self._model_path, self._engine_args, self._progress, started=started)
        if self._live.offloaded:
            # The host cannot read what a GPU holds.
            self.capabilities = type(self).capabilities - _HOST_ONLY
        return {**self._live.information(), "capabilities": sorted(self.capabilities)}

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """Answers in the order of the prompts; cache path ``engine`` decodes several at once, the others prompt by prompt."""
        requests.check_sampling(sampling, cache_path=cache_path)
        requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._live.limits)
        generation = self._part("generation")
        stops = requests.end_tokens(sampling, self._live.end_token_ids)
        self._live.rest()
        try:
            asked = {"sampling": sampling, "stops": stops, "top": logprobs}
            if cache_path == "engine":
                batch = generation.Generation(self._live.library, self._live.decoder, self._live.arguments.sequences, **asked)
                outputs = batch.run(prompts, self._progress)
            else:
                generate = generation.generate_in_loop if cache_path == "loop" else generation.generate_anew
                outputs = generate(self._live.decoder, prompts, progress=self._progress, **asked)
        finally:
            self._live.rest()
        return {"outputs": outputs}

    def score(self, *, sequences: Sequence[Sequence[int]], cache_path: str = "prefill") -> Message:
        """Log-probabilities of given tokens; cache path ``decode`` feeds them one by one."""
        requests.check_cache_path(cache_path, requests.SCORE_PATHS)
        requests.check_tokens(sequences, least=2, **self._live.limits)
        self._live.rest()
        try:
            scores = self._part("scoring").score(
                self._live.decoder, sequences, decode=cache_path == "decode", progress=self._progress
            )
        finally:
            self._live.rest()
        return {"logprobs": scores}

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """The last tokens of given sequences, one sequence after the other."""
        requests.check_tokens(sequences, least=last + 2, **self._live.limits)
        self._live.rest()
        try:
            scores = self._part("scoring").score_top(self._live.decoder, sequences, top=top, last=last, progress=self._progress)
        finally:
            self._live.rest()
        return {"scores": scores}

    def layout(self) -> Message:
        """Every tensor of the loaded file."""
        return self._live.layout()

    def memory(self, *, reset_peak: bool = False) -> Message:
        """What is in use now, and the peaks."""
        return self._live.memory(reset_peak=reset_peak)

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:
        """The cache after the prompt, and what decoding did to it."""
        requests.check_tokens([prompt], extra=extend, **self._live.limits)
        self._live.rest()
        try:
            return self._live.cache_report(prompt, extend)
        finally:
            self._live.rest()

    def kv_pool(self) -> Message:
        """The cells of the context."""
        return self._live.pool()

    def ranks(self) -> Message:
        """This process, which holds the whole model."""
        device, weights = self._live.device, sum(tensor.stored_bytes for tensor in self._live.file.tensors.values())
        return {"ranks": [{"pid": os.getpid(), "name": "llama.cpp", "device": device, "weights_bytes": weights}]}

    def settings(self) -> Message:
        """The parameters in force, and the engine's own defaults."""
        return self._live.settings()

    def calibrate(self) -> Message:
        """What the host can do right now."""
        return dict(self._part("calibration").measure())

    def reference_step(self) -> Message:
        """A frozen decode step of NumPy in this process."""
        return dict(importlib.import_module("pytest_llminfer.worker.backends.speed.reference_numpy").measure())

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called with the live ``llama_cpp.Llama``, whose cache is empty."""
        self._live.rest()
        try:
            return probe.call_probe(path, function, self._live.llama, arguments)
        finally:
            self._live.rest()

    def close(self) -> None:
        """Free context and model: at the interpreter's end llama.cpp would call back into what is gone already."""
        self._live.llama.close()

    def _part(self, name: str) -> ModuleType:
        """A module of this folder that imports NumPy or the engine."""
        return importlib.import_module(f"{_HERE}.{name}")
