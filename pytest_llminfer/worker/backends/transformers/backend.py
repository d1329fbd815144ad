"""The transformers engine as a backend: checks that need no framework, then the live model."""

from __future__ import annotations

import importlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.worker.backends import probe, requests
from pytest_llminfer.worker.backends.checkpoint import is_local, read_checkpoint, read_configuration
from pytest_llminfer.worker.backends.transformers.arguments import Arguments
from pytest_llminfer.worker.backends.transformers.packages import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.transformers.live import LiveModel


class TransformersBackend:
    """One model of Hugging Face transformers, on the first visible GPU or on the CPU.

    torch and transformers are imported by ``load``, so that what is missing is named before anything heavy happens.
    """

    capabilities = frozenset(
        {"generate", "generate:loop", "generate:no_cache", "score", "layout", "memory", "kv_cache", "settings", "calibrate", "run"}
    )

    _live: LiveModel

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = engine_args

    def load(self) -> Message:
        """Look at the arguments and files, import the framework, load the model."""
        requests.check_parallelism(self._spec)
        arguments = Arguments.read(self._engine_args)
        if is_local(self._model_path):
            read_configuration(self._model_path)
            if self._spec.weights == "real":
                read_checkpoint(Path(self._model_path))
        started = time.perf_counter()
        packages = ["torch", *(("accelerate", "bitsandbytes") if self._spec.quantization != "none" else ())]
        self._import_framework(packages)
        live = importlib.import_module("pytest_llminfer.worker.backends.transformers.live")
        self._live = live.LiveModel.load(self._spec, self._model_path, arguments, self._progress, started=started)
        return {**self._live.information(*packages), "capabilities": sorted(self.capabilities)}

    def generate(self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, route: str = "engine") -> Message:
        """Answers in the order of the prompts; route ``engine`` works in batches, the others prompt by prompt."""
        requests.check_sampling(sampling, route=route)
        requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._live.limits)
        return {"outputs": self._live.generate(prompts, sampling, logprobs, route)}

    def score(self, *, sequences: Sequence[Sequence[int]], route: str = "prefill") -> Message:
        """Log-probabilities of given tokens; route ``decode`` feeds them one by one."""
        requests.check_route(route, requests.SCORE_ROUTES)
        requests.check_tokens(sequences, least=2, **self._live.limits)
        return {"logprobs": self._live.score(sequences, route)}

    def layout(self) -> Message:
        """Every stored tensor, as it is stored now."""
        return self._live.layout()

    def memory(self, *, reset_peak: bool = False) -> Message:
        """What is in use now, and the peaks."""
        return self._live.memory(reset_peak=reset_peak)

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:
        """The cache after the prompt, and what decoding did to it."""
        requests.check_tokens([prompt], extra=extend, **self._live.limits)
        return self._live.cache_report(prompt, extend)

    def settings(self) -> Message:
        """The configuration in force, and the model's own generation defaults, which no request uses."""
        return self._live.settings()

    def calibrate(self) -> Message:
        """What the device can do right now."""
        return dict(self._live.calibrate())

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called with the live model (a ``torch.nn.Module``) whose parameters need no gradient."""
        return probe.call_probe(path, function, self._live.model, arguments)

    def close(self) -> None:
        """Nothing: the end of the process frees the device."""

    def _import_framework(self, packages: Sequence[str]) -> None:
        require("transformers", *packages, purpose=f"the engine {self._spec}")
        if is_local(self._model_path):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        # It repeats one warning at every layer of every step, and asks for a package that would fetch kernels from the network.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        modules = {name: importlib.import_module(name) for name in ("transformers", *packages)}
        if modules["torch"].cuda.is_available():
            require("accelerate", purpose="transformers on a GPU")
        reports = modules["transformers"].utils.logging
        reports.set_verbosity_error()
        reports.disable_progress_bar()
