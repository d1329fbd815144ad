"""The transformers engine as a backend: checks that need no framework, then the live model."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.safetensors import is_local, read_checkpoint, read_configuration
from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends import probe, requests
from pytest_llminfer.worker.backends.packages import require
from pytest_llminfer.worker.backends.transformers import combine
from pytest_llminfer.worker.backends.transformers.arguments import Arguments
from pytest_llminfer.worker.backends.transformers.group import RankGroup, own_rank
from pytest_llminfer.worker.backends.transformers.parallelism import check_heads, check_parallelism
from pytest_llminfer.worker.backends.transformers.prequantized import check_stored, packages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.transformers.live import LiveModel

_COMPUTED_IN_ANY_DTYPE = ("nf4", "fp4")
"""Formats whose kernels take activations in float32; those of LLM.int8() compute in 16 bits."""


class TransformersBackend:
    """One model of Hugging Face transformers, on the first visible GPU or on the CPU; with tp=N on the first N, or in N processes.

    torch and transformers are imported by ``load``, so that what is missing is named before anything heavy happens.
    With tp=N this worker is rank 0: it starts the others as workers like itself, and every request that computes is done by all.
    """

    capabilities = frozenset(
        {
            *("generate", "generate:loop", "generate:no_cache", "generate:logprobs", "score", "score:decode", "score_top"),
            *("layout", "memory", "kv_cache", "ranks", "settings", "calibrate", "reference_step", "run", "compare_cache_paths"),
            "score_listed",
        }
    )

    _live: LiveModel
    _group: RankGroup | None = None

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = engine_args

    def warm(self) -> None:
        """Import the framework, as ``load`` would."""
        self._import_framework(["torch", *packages(self._spec.quantization)])

    def load(self) -> Message:
        """Look at the arguments and files, import the framework, load the model."""
        check_parallelism(self._spec)
        if self._spec.tp > 1:
            self.capabilities = self.capabilities - {"compare_cache_paths", "score_listed"}
        if self._spec.quantized and self._spec.quantization not in _COMPUTED_IN_ANY_DTYPE:
            self.capabilities = self.capabilities - {"score_listed"}
        arguments = Arguments.read(self._engine_args)
        if is_local(self._model_path):
            configuration = read_configuration(self._model_path)
            check_heads(configuration, self._spec.tp)
            check_stored(self._spec, self._model_path, configuration.get("quantization_config"))
            if self._spec.weights == "real":
                read_checkpoint(Path(self._model_path))
        started = time.perf_counter()
        needed = ["torch", *packages(self._spec.quantization)]
        purpose = f"the engine {self._spec}"
        require("transformers", *needed, *(("accelerate",) if self._spec.tp > 1 else ()), purpose=purpose)
        if self._spec.tp > 1 and own_rank() == 0:
            self._group = RankGroup(self._spec.tp)

        def own() -> Message:
            self._import_framework(needed)
            live = importlib.import_module("pytest_llminfer.worker.backends.transformers.live")
            self._live = live.LiveModel.load(self._spec, self._model_path, arguments, self._progress, started=started)
            self.capabilities = self.capabilities | self._live.capabilities
            return {**self._live.information(*needed), "capabilities": sorted(self.capabilities)}

        params = {"spec": self._spec.to_dict(), "model_path": self._model_path, "engine_args": dict(self._engine_args)}
        return self._by_all("load", {**params, "backend": f"{type(self).__module__}:{type(self).__name__}"}, own)[0]

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """Answers in the order of the prompts; cache path ``engine`` works in batches, the others prompt by prompt."""
        requests.check_sampling(sampling, cache_path=cache_path)
        requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._live.limits)
        params = {"prompts": prompts, "sampling": sampling, "logprobs": logprobs, "cache_path": cache_path}
        return self._by_all("generate", params, lambda: {"outputs": self._live.generate(prompts, sampling, logprobs, cache_path)})[
            0
        ]

    def score(self, *, sequences: Sequence[Sequence[int]], cache_path: str = "prefill") -> Message:
        """Log-probabilities of given tokens; cache path ``decode`` feeds them one by one."""
        requests.check_cache_path(cache_path, requests.SCORE_PATHS)
        requests.check_tokens(sequences, least=2, **self._live.limits)
        params = {"sequences": sequences, "cache_path": cache_path}
        return self._by_all("score", params, lambda: {"logprobs": self._live.score(sequences, cache_path)})[0]

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """The last tokens of given sequences, in batches padded on the left."""
        requests.check_tokens(sequences, least=last + 2, **self._live.limits)
        params = {"sequences": sequences, "top": top, "last": last}
        return self._by_all("score_top", params, lambda: {"scores": self._live.score_top(sequences, top, last)})[0]

    def score_listed(self, *, sequences: Sequence[Message]) -> Message:
        """Listed tokens, by prefill in a wider dtype than is served."""
        if "score_listed" not in self.capabilities:
            raise UnsupportedError(f"{self._spec} is not computed in a wider dtype", "use quantization=none and tp=1")
        ids = [entry["token_ids"] for entry in sequences]
        for entry in sequences:
            requests.check_tokens([entry["token_ids"]], least=len(entry["listed"]) + 1, **self._live.limits)
        return {"logprobs": self._live.score_listed(ids, [entry["listed"] for entry in sequences])}

    def layout(self) -> Message:
        """Every stored tensor, as it is stored now; of a split model what each rank holds."""
        answers = self._by_all("layout", {}, self._live.layout, keep=True)
        return {"ranks": answers} if len(answers) > 1 else answers[0]

    def memory(self, *, reset_peak: bool = False) -> Message:
        """What is in use now, and the peaks: of the rank with the most."""
        own = functools.partial(self._live.memory, reset_peak=reset_peak)
        return combine.memory(self._by_all("memory", {"reset_peak": reset_peak}, own, keep=True))

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:
        """The cache after the prompt, and what decoding did to it."""
        requests.check_tokens([prompt], extra=extend, **self._live.limits)
        params = {"prompt": prompt, "extend": extend}
        answers = self._by_all("kv_cache", params, lambda: self._live.cache_report(prompt, extend), keep=True)
        return combine.kv_cache(answers, self._live.kv_heads) if len(answers) > 1 else answers[0]

    def compare_cache_paths(
        self,
        *,
        sequences: Sequence[Sequence[int]],
        candidate: Message,
        reference: Message,
        config: Message | None = None,
        dtype: str = "",
        seed: int = 0,
    ) -> Message:
        """Two ways through the cache of the loaded model, or of one made of ``config`` in this process.

        Raises:
            UnsupportedError: the model is split over ranks, or computes in another dtype than ``dtype``.
        """
        if self._spec.tp > 1:
            raise UnsupportedError(f"{self._spec}: no rank holds a whole KV cache to compare cache paths over", "use tp=1")
        if config is None and dtype not in {"", self._live.spec_dtype}:
            raise UnsupportedError(
                f"the loaded model computes in {self._live.spec_dtype}, not {dtype}", f"load it with dtype={dtype}"
            )
        cache_paths = {"candidate": candidate, "reference": reference}
        return self._live.compare_cache_paths(sequences, cache_paths, config, dtype, seed)

    def ranks(self) -> Message:
        """This process, and the others that hold a part of the model."""
        answers = self._by_all("ranks", {}, lambda: {"ranks": [self._live.rank()]}, keep=True)
        return {"ranks": [entry for answer in answers for entry in answer["ranks"]]}

    def settings(self) -> Message:
        """The configuration in force, and the model's own generation defaults, which no request uses."""
        return self._live.settings()

    def calibrate(self) -> Message:
        """What the device can do right now."""
        return dict(self._live.calibrate())

    def reference_step(self) -> Message:
        """A frozen decode step of torch on this device."""
        return self._live.reference_step()

    def trace(self, *, batches: Sequence[Sequence[Sequence[int]]], sampling: Message) -> Message:
        """What this process gives its GPU to do while it generates for each batch."""
        for prompts in batches:
            requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._live.limits)
        params = {"batches": batches, "sampling": sampling}
        return self._by_all("trace", params, lambda: self._live.trace(batches, sampling))[0]

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called with the live model (a ``torch.nn.Module``) whose parameters need no gradient.

        Over several ranks it is called in each of them with its part of the model (the variable RANK says which one it is), and
        what it returns in rank 0 is the result.
        """
        params = {"path": path, "function": function, "arguments": arguments}
        return self._by_all("run", params, lambda: probe.call_probe(path, function, self._live.model, arguments))[0]

    def close(self) -> None:
        """End the other ranks; the end of a process frees its device."""
        if self._group is not None:
            self._group.close()

    def _by_all(self, method: str, params: Message, own: Callable[[], Message], *, keep: bool = False) -> list[Message]:
        """This process's answer, then those of the ranks that it leads. keep: what another rank answers is needed."""
        if self._group is not None:
            return self._group.run(method, params, own)
        answer = own()
        return [answer if keep or own_rank() == 0 else {}]

    def _import_framework(self, packages: Sequence[str]) -> None:
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
