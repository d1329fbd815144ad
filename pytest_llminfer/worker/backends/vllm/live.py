"""A loaded vLLM engine: its ranks by their processes, and questions to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import WORKER_ERRORS, BadInputError, EngineError, UnsupportedError
from pytest_llminfer.worker.backends import requests, shared_memory
from pytest_llminfer.worker.backends.host import processor_name
from pytest_llminfer.worker.backends.packages import versions
from pytest_llminfer.worker.backends.stepwise import generate_without_cache
from pytest_llminfer.worker.backends.vllm import failures, generation, metrics, scoring, settings
from pytest_llminfer.worker.backends.vllm.frames import pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

    import numpy as np

    Progress = Callable[[str, int, int], None]

_SPEC_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "fp8_e4m3": "fp8"}
_BESIDE = ("transformers", "triton", "compressed-tensors", "bitsandbytes", "flashinfer-python", "numpy")


class LiveEngine:
    """``LLM`` and what is known of it. ``vllm``: the module. ``decode``: whether tokens can be teacher-forced on the decode
    path.
    """

    def __init__(
        self, vllm: ModuleType, keywords: dict[str, Any], *, end_token_ids: list[int] | None, decode: bool, progress: Progress
    ) -> None:
        self._vllm, self._progress = vllm, progress
        self.decode = decode
        self._log = failures.Log()
        started = time.perf_counter()
        progress("loading", 0, 1)
        with failures.loading(keywords["model"], self._log):
            self.llm = vllm.LLM(**keywords)
        self.load_seconds = time.perf_counter() - started
        self._config = self.llm.llm_engine.vllm_config
        self._processes = _core_processes(self.llm)
        self._ranks = self._ask("loaded")
        self._processes |= {rank["pid"]: rank["process"] for rank in self._ranks}
        shared_memory.unlink(self._processes)
        self.end_token_ids = _end_tokens(self._config.model_config) if end_token_ids is None else end_token_ids
        progress("loading", 1, 1)

    @property
    def capabilities(self) -> set[str]:
        """What this engine answers because of how it was started; without a prefix cache there is nothing to empty."""
        found = {
            "score:decode": self.decode,
            "trace": self._ranks[0]["device"] != "cpu",
            "reset_prefix_cache": bool(self._config.cache_config.enable_prefix_caching),
            "cache_counters": bool(getattr(self.llm.llm_engine, "log_stats", False)),
        }
        return {name for name, there in found.items() if there}

    @property
    def limits(self) -> dict[str, int]:
        """As ``requests.check_tokens`` takes them."""
        model = self._config.model_config
        return {"vocab_size": int(model.get_vocab_size()), "max_positions": int(model.max_model_len)}

    def information(self, import_seconds: float) -> dict[str, Any]:
        """The fields of ``EngineInfo`` that belong to the engine."""
        first = self._ranks[0]
        compiling = first["compile_seconds"] or 0.0
        dtype = settings.plain(self._config.model_config.dtype)
        cache = str(self._config.cache_config.cache_dtype)
        device = "cpu" if first["device"] == "cpu" else "cuda"
        return {
            "dtype": _SPEC_DTYPES.get(dtype, dtype),
            "kv_dtype": _SPEC_DTYPES.get(dtype, dtype) if cache == "auto" else _SPEC_DTYPES.get(cache, cache),
            "device": device,
            "device_name": first["device_name"] or processor_name(),
            "device_count": len(self._ranks),
            "versions": {"engine": str(self._vllm.__version__), **first["versions"], **versions(*_BESIDE)},
            "load_seconds": {
                "import": import_seconds,
                "load": self.load_seconds - compiling,
                **({"compile": compiling} if compiling else {}),
            },
            "end_token_ids": self.end_token_ids,
        }

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: dict[str, Any], logprobs: int, *, cached: bool
    ) -> list[dict[str, Any]]:
        """One answer a prompt; without the cache every token is computed from the whole prefix."""
        generation.check_logprobs(logprobs, int(self._config.model_config.max_logprobs))
        ends = requests.end_tokens(sampling, self.end_token_ids)
        with failures.running("generating", self._processes, self._log):
            if cached:
                return self._answers(prompts, sampling, logprobs, self._progress)
            one = {**sampling, "max_tokens": 1}

            def step(prefixes: list[list[int]], top: int) -> list[dict[str, Any]]:
                self.reset_prefix_cache()
                return self._answers(prefixes, one, top, None)

            return generate_without_cache(step, prompts, sampling["max_tokens"], ends, logprobs=logprobs, progress=self._progress)

    def _answers(
        self, prompts: Sequence[Sequence[int]], sampling: dict[str, Any], logprobs: int, progress: Progress | None
    ) -> list[dict[str, Any]]:
        fields = generation.sampling_fields(sampling, self.end_token_ids, logprobs=logprobs)
        params = generation.sampling_params(self._vllm.SamplingParams, **fields)
        outputs = generation.generate(self.llm, prompts, params, progress)
        return generation.answers(outputs, fields["stop_token_ids"], logprobs=logprobs)

    def score(self, sequences: Sequence[Sequence[int]], *, decode: bool) -> list[np.ndarray]:
        """Log-probabilities of given tokens.

        Raises:
            UnsupportedError: ``decode`` without the logits processor that forces tokens.
        """
        if decode and not self.decode:
            raise UnsupportedError(
                "this vllm was started without the logits processor that forces tokens, "
                "which would make it choose another model runner than it does on its own",
                "start it with the engine argument score_by_decode=true",
            )
        with failures.running("scoring", self._processes, self._log):
            return scoring.score(self.llm, self._vllm.SamplingParams, sequences, decode=decode, progress=self._progress)

    def score_top(self, sequences: Sequence[Sequence[int]], *, top: int, last: int) -> list[dict[str, np.ndarray]]:
        """The last tokens of given sequences, with the most likely tokens of each position."""
        with failures.running("scoring", self._processes, self._log):
            return scoring.score_top(self.llm, self._vllm.SamplingParams, sequences, top=top, last=last, progress=self._progress)

    def layout(self) -> dict[str, Any]:
        """The parameters of the model, or of each rank."""
        answers = self._ask("layout")
        return {"ranks": answers} if len(answers) > 1 else answers[0]

    def memory(self, *, reset_peak: bool) -> dict[str, Any]:
        """Every figure is that of the rank with the most."""
        ranks = self._ask("memory", reset_peak=reset_peak)
        return {
            name: max((rank[name] for rank in ranks if rank[name] is not None), default=None)
            if isinstance(value, int) or value is None
            else value
            for name, value in ranks[0].items()
        }

    def kv_pool(self) -> dict[str, Any]:
        """The fields of ``KVPool``. One block is vLLM's own, the null block; a rank holds its heads of every token."""
        ranks = self._ask("pool")
        cache = self._config.cache_config
        blocks, size = int(cache.num_gpu_blocks), int(cache.block_size)
        stored = sum(rank["stored_bytes"] for rank in ranks)
        return {
            "num_blocks": blocks - 1,
            "block_size": size,
            "capacity_tokens": (blocks - 1) * size,
            "dtype": ranks[0]["dtype"],
            "stored_bytes": stored,
            "bytes_per_token": stored // (blocks * size),
            "max_model_len": int(self._config.model_config.max_model_len),
            "max_concurrency": getattr(cache, "kv_cache_max_concurrency", None),
        }

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache.

        Raises:
            EngineError: vLLM did not: a request is still under way.
        """
        if not self.llm.reset_prefix_cache():
            raise EngineError("vllm did not empty its prefix cache, so that the next answer may come from it")

    def cache_counters(self) -> dict[str, Any]:
        """The fields of ``CacheCounters``: vLLM counts only with the engine argument ``disable_log_stats=false``.

        Raises:
            UnsupportedError: vLLM was started without its counters.
        """
        if "cache_counters" not in self.capabilities:
            raise UnsupportedError("this vllm counts nothing", "start it with the engine argument disable_log_stats=false")
        return metrics.cache_counters(self.llm.get_metrics())

    def ranks(self) -> list[dict[str, Any]]:
        """Every rank, asked now."""
        return self._ask("rank")

    def settings(self) -> dict[str, Any]:
        """The configuration in force and vLLM's defaults."""
        from vllm.engine.arg_utils import EngineArgs

        return {
            "resolved": settings.resolved(self._config, self._ask("backends")[0]),
            "defaults": settings.defaults(EngineArgs),
            "versions": {"vllm": str(self._vllm.__version__), **self._ranks[0]["versions"], **versions(*_BESIDE)},
        }

    def calibrate(self) -> dict[str, Any]:
        """What the first rank's device can do now."""
        return self._ask("calibrate")[0]

    def reference_step(self) -> dict[str, Any]:
        """A frozen decode step in the first rank."""
        return self._ask("reference_step")[0]

    def trace(self, batches: Sequence[Sequence[Sequence[int]]], sampling: dict[str, Any]) -> dict[str, Any]:
        """What the first rank's device does while vLLM generates for each batch."""
        self._ask("trace_start")
        for prompts in batches:
            self.generate(prompts, sampling, 0, cached=True)
        return self._ask("trace_stop", steps=len(batches) * sampling["max_tokens"])[0]

    def run(self, path: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The user's function, in every rank; the first one's result."""
        return self._ask("run", path=path, function=function, arguments=arguments)[0]

    def _ask(self, question: str, **params: Any) -> list[dict[str, Any]]:
        """The answer of every rank, in their order."""
        with failures.running(f"answering {question!r}", self._processes, self._log):
            frames = self.llm.collective_rpc("llminfer_answer", args=(pack({"ask": question, "params": params}),))
        answers = [unpack(frame) for frame in frames]
        for answer in answers:
            if "error" in answer:
                kind = answer["error"]["kind"]
                text = answer["error"]["message"] + (f"\n{answer['error']['traceback']}" if answer["error"]["traceback"] else "")
                raise WORKER_ERRORS.get(kind, EngineError)(text)
        return [answer["result"] for answer in answers]


def _core_processes(llm: Any) -> dict[int, str]:
    """The processes that schedule, by id; none where vLLM runs in this one."""
    manager = getattr(getattr(llm.llm_engine.engine_core, "resources", None), "engine_manager", None)
    return {process.pid: process.name for process in getattr(manager, "processes", None) or []}


def _end_tokens(model_config: Any) -> list[int]:
    """End tokens of a model that vLLM has fetched: what its generation_config says, otherwise its configuration."""
    fetched = model_config.try_get_generation_config() if hasattr(model_config, "try_get_generation_config") else {}
    ids = (fetched or {}).get("eos_token_id") or getattr(model_config.hf_config, "eos_token_id", None)
    return end_token_list(ids)


def end_token_list(ids: Any) -> list[int]:
    """One id, several or none, in rising order.

    Raises:
        BadInputError: something other than ids.
    """
    if ids is None:
        return []
    if not isinstance(ids, (int, list, tuple)):
        raise BadInputError(f"the model's eos_token_id is {ids!r}: expected a number or a list of them")
    return sorted({int(token) for token in (ids if isinstance(ids, (list, tuple)) else [ids])})
