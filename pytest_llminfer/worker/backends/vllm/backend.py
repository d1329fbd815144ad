"""The vLLM engine as a backend: checks that need no framework, then an offline ``LLM`` whose ranks are asked where they live."""

from __future__ import annotations

import importlib
import json
import os
import time
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.safetensors import is_local, read_checkpoint, read_configuration
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends import requests
from pytest_llminfer.worker.backends.packages import require
from pytest_llminfer.worker.backends.vllm import variables
from pytest_llminfer.worker.backends.vllm.arguments import FORCED_TOKENS, Arguments, Installed, build

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.vllm.live import LiveEngine

_CAPABILITIES = frozenset(
    {
        "generate", "generate:no_cache", "generate:logprobs", "score", "score_top", "layout", "memory", "kv_pool", "ranks",
        "settings", "calibrate", "reference_step", "run",
    }
)  # fmt: skip


class VllmBackend:
    """One offline ``LLM`` of vLLM, with its engine core and ranks in processes of their own, as in production.

    torch and vllm are imported by ``load``, so that what is missing is named before anything heavy happens.
    """

    capabilities = _CAPABILITIES

    _live: LiveEngine

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = engine_args

    def warm(self) -> None:
        """Import vLLM, as ``load`` would."""
        variables.set_before_import(os.environ, local=is_local(self._model_path))
        importlib.import_module("vllm")

    def load(self) -> Message:
        """Look at files and arguments, import vLLM, start it."""
        local = is_local(self._model_path)
        configuration = read_configuration(self._model_path) if local and not self._model_path.endswith(".gguf") else None
        if configuration is not None and self._spec.weights == "real":
            read_checkpoint(Path(self._model_path))
        require("vllm", "torch", purpose=f"the engine {self._spec}")
        started = time.perf_counter()
        self._progress("importing", 0, 1)
        variables.set_before_import(os.environ, local=local)
        vllm = importlib.import_module("vllm")
        self._progress("importing", 1, 1)
        installed = _installed(vllm)
        arguments = Arguments.read(self._engine_args, installed.fields)
        keywords = build(self._spec, self._model_path, arguments, installed, configuration)
        if installed.on_cpu:
            ranks, eager = self._spec.tp * self._spec.pp, bool(keywords.get("enforce_eager"))
            variables.set_for_cpu(os.environ, ranks=ranks, eager=eager)
        else:
            variables.set_for_gpu(os.environ)
        decode = _force_tokens(keywords, arguments.score_by_decode, installed)
        live = importlib.import_module("pytest_llminfer.worker.backends.vllm.live")
        ends = _end_tokens(Path(self._model_path), configuration, live) if configuration is not None else None
        imported = time.perf_counter() - started
        self._live = live.LiveEngine(vllm, keywords, end_token_ids=ends, decode=decode, progress=self._progress)
        self.capabilities = _CAPABILITIES | self._live.capabilities
        return {**self._live.information(imported), "capabilities": sorted(self.capabilities)}

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """One ``LLM.generate`` over all prompts; cache path ``no_cache`` is one of a single token for every step.

        Raises:
            UnsupportedError: the cache path ``loop``.
            BadInputError: sampling or token ids that the model cannot take.
        """
        requests.check_sampling(sampling, cache_path=cache_path)
        if cache_path == "loop":
            raise UnsupportedError("vllm's cache cannot be driven by a hand-written loop", "use cache path engine or no_cache")
        requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._live.limits)
        return {"outputs": self._live.generate(prompts, sampling, logprobs, cached=cache_path == "engine")}

    def score(self, *, sequences: Sequence[Sequence[int]], cache_path: str = "prefill") -> Message:
        """Log-probabilities of given tokens; cache path ``decode`` forces them one by one."""
        requests.check_cache_path(cache_path, requests.SCORE_PATHS)
        # vLLM wants room for one token after a prompt.
        requests.check_tokens(sequences, least=2, extra=0 if cache_path == "decode" else 1, **self._live.limits)
        return {"logprobs": self._live.score(sequences, decode=cache_path == "decode")}

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """The last tokens of given sequences, all of them under way at once."""
        requests.check_tokens(sequences, least=last + 2, extra=1, **self._live.limits)
        return {"scores": self._live.score_top(sequences, top=top, last=last)}

    def layout(self) -> Message:
        """Every stored tensor, of each rank where there are several, by vLLM's own names."""
        return self._live.layout()

    def memory(self, *, reset_peak: bool = False) -> Message:
        """What the fullest rank holds now, and the peaks."""
        return self._live.memory(reset_peak=reset_peak)

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:  # noqa: ARG002 - the contract names them
        """Not possible: vLLM does not show the blocks of one request.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "vllm does not show the keys and values of one request, only its pool (kv_pool)", "transformers shows them"
        )

    def kv_pool(self) -> Message:
        """The pool, over all ranks."""
        return self._live.kv_pool()

    def cache_counters(self) -> Message:
        """What vLLM's own metrics have counted."""
        return self._live.cache_counters()

    def reset_prefix_cache(self) -> Message:
        """Empty the prefix cache."""
        self._live.reset_prefix_cache()
        return {}

    def ranks(self) -> Message:
        """Every process that holds a part of the model."""
        return {"ranks": self._live.ranks()}

    def settings(self) -> Message:
        """The configuration in force and vLLM's own defaults."""
        return self._live.settings()

    def calibrate(self) -> Message:
        """What the first rank's device can do now."""
        return self._live.calibrate()

    def reference_step(self) -> Message:
        """A frozen decode step of torch in the first rank's process."""
        return self._live.reference_step()

    def trace(self, *, batches: Sequence[Sequence[Sequence[int]]], sampling: Message) -> Message:
        """What the first rank gives its GPU to do while vLLM generates for each batch."""
        for prompts in batches:
            requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._live.limits)
        return self._live.trace(batches, sampling)

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called in every rank with its live model (a ``torch.nn.Module``); the first rank's result."""
        return self._live.run(path, function, arguments)

    def close(self) -> None:
        """Nothing: the processes are killed with the worker, which takes vLLM's own way five seconds."""


def _installed(vllm: ModuleType) -> Installed:
    """What this vLLM accepts, asked from itself."""
    import dataclasses

    cache = importlib.import_module("vllm.config.cache")
    methods = importlib.import_module("vllm.model_executor.layers.quantization").QUANTIZATION_METHODS
    platform = importlib.import_module("vllm.platforms").current_platform
    return Installed(
        fields=frozenset(field.name for field in dataclasses.fields(vllm.EngineArgs) if not field.name.startswith("_")),
        cache_dtypes=frozenset(typing.get_args(getattr(cache, "CacheDType", None)) or ("auto",)),
        methods=frozenset(methods),
        on_cpu=bool(platform.is_cpu()),
    )


def _force_tokens(keywords: dict[str, Any], wanted: bool | None, installed: Installed) -> bool:  # noqa: FBT001 - as the user gave it
    """Whether tokens can be teacher-forced: by default only where that changes nothing about the engine.

    vLLM's second model runner takes no such logits processor. It needs Triton, so a CPU without that has the first one anyway.
    """
    if "logits_processors" not in installed.fields:
        if wanted:
            raise UnsupportedError(
                "the installed vllm has no engine argument logits_processors, which score_by_decode needs",
                "use a version of vLLM that has it",
            )
        return False
    if wanted is None:
        wanted = installed.on_cpu and not importlib.import_module("vllm.triton_utils").HAS_TRITON
    elif wanted:
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    if wanted:
        keywords["logits_processors"] = [*(keywords.get("logits_processors") or []), FORCED_TOKENS]
    return wanted


def _end_tokens(folder: Path, configuration: Mapping[str, Any], live: ModuleType) -> list[int]:
    """The model's end tokens: what its generation_config.json says, otherwise its configuration."""
    file = folder / "generation_config.json"
    ids = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return list(live.end_token_list(ids if ids is not None else configuration.get("eos_token_id")))
