"""SGLang's offline engine as a backend: checks that need no framework, then the live engine."""

from __future__ import annotations

import importlib
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.checkpoints.safetensors import is_local, read_checkpoint, read_configuration
from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends import host, requests
from pytest_llminfer.worker.backends.packages import require, versions
from pytest_llminfer.worker.backends.sglang import arguments, generation, reports, settings
from pytest_llminfer.worker.backends.stepwise import generate_without_cache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.sglang.live import LiveEngine


class SglangBackend:
    """One ``sglang.Engine``, on the visible GPUs or on the CPU. torch and sglang are imported by ``load``."""

    capabilities = frozenset(
        {
            *("generate", "generate:no_cache", "generate:logprobs", "score", "score_top"),
            *("layout", "memory", "kv_pool", "ranks", "settings", "calibrate", "reference_step", "run"),
            *("cache_counters", "reset_prefix_cache"),
        }
    )

    _live: LiveEngine

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = engine_args

    def warm(self) -> None:
        """Import SGLang, as ``load`` would."""
        if is_local(self._model_path):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        importlib.import_module("sglang.srt.entrypoints.engine")

    def load(self) -> Message:
        """Look at the arguments and files, import the framework, start the engine."""
        configuration: dict[str, Any] = {}
        if is_local(self._model_path):
            configuration = read_configuration(self._model_path)
            if self._spec.weights == "real":
                read_checkpoint(Path(self._model_path))
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        started = time.perf_counter()
        require("torch", "sglang", purpose=f"the engine {self._spec}")
        if self._spec.quantization == "nf4":
            require("bitsandbytes", purpose=f"the engine {self._spec}")
        self._progress("importing sglang", 0, 1)
        torch = importlib.import_module("torch")
        self._defaults = settings.defaults(importlib.import_module("sglang.srt.server_args").ServerArgs)
        live = importlib.import_module("pytest_llminfer.worker.backends.sglang.live")
        given = self._given(configuration, on_cpu=not torch.cuda.is_available())
        importlib.import_module("sglang.srt.entrypoints.engine")
        imported = time.perf_counter()
        self._live = live.LiveEngine.start(self._spec, given, self._progress)
        seconds = {"import": imported - started, "load": time.perf_counter() - imported}
        self._facts = self._live.ask("facts")[0]
        if self._facts["device"] == "cuda":
            self.capabilities = self.capabilities | {"trace"}
        if not self._facts.pop("keeps_prefixes"):
            self.capabilities = self.capabilities - {"reset_prefix_cache"}
        reports.check_pool(self._engine_args.get("max_total_tokens"), self.kv_pool())
        self._end_token_ids = reports.end_token_ids(self._model_path, configuration)
        return self._information(seconds)

    def _given(self, configuration: Mapping[str, Any], *, on_cpu: bool) -> dict[str, Any]:
        return arguments.engine_arguments(
            self._spec,
            self._model_path,
            self._engine_args,
            known=[name for name in self._defaults if not name.startswith("_")],
            on_cpu=on_cpu,
            has_cpu_kernels=not on_cpu or _has_cpu_kernels(),
            positions=int(configuration.get("max_position_embeddings") or 0),
            quant_method=str((configuration.get("quantization_config") or {}).get("quant_method", "")),
        )

    def _information(self, seconds: dict[str, float]) -> Message:
        facts = self._facts
        return {
            "dtype": reports.spec_dtype(facts["dtype"]),
            "kv_dtype": reports.spec_dtype(facts["kv_dtype"]),
            "device": facts["device"],
            "device_name": facts["device_name"] or host.processor_name(),
            "device_count": self._spec.num_gpus,
            "capabilities": sorted(self.capabilities),
            "versions": self._versions(),
            "load_seconds": seconds,
            "end_token_ids": self._end_token_ids,
        }

    def _versions(self) -> dict[str, str]:
        found = versions("sglang", "torch", "transformers", "sglang-kernel", "sgl-kernel", "flashinfer-python", "triton")
        return {"engine": found.get("sglang", ""), **found, "python": platform.python_version(), **reports.driver()}

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, cache_path: str = "engine"
    ) -> Message:
        """All prompts under way at once, answers in their order; ``no_cache`` asks for one token of the whole prefix at a time.

        Raises:
            UnsupportedError: the cache path ``loop``.
            BadInputError: sampling or prompts that SGLang cannot take in full.
        """
        requests.check_sampling(sampling, cache_path=cache_path)
        if cache_path == "loop":
            raise UnsupportedError(
                "sglang has no loop over its cache that could be written by hand", "use cache path engine or no_cache"
            )
        self._check_lengths(prompts, extra=sampling["max_tokens"])
        ends = requests.end_tokens(sampling, self._end_token_ids)
        if cache_path == "engine":
            return {"outputs": self._generate(prompts, sampling, logprobs, ends, phase="generating")}
        single = {**sampling, "max_tokens": 1, "ignore_eos": True}

        def step(prefixes: list[list[int]], top: int) -> list[dict[str, Any]]:
            self._live.flush_cache()
            # Log-probabilities from position 0 keep SGLang from taking a prefix over from a neighbour in the same step.
            return self._generate(prefixes, single, top, ends, logprob_start_len=0)

        outputs = generate_without_cache(step, prompts, sampling["max_tokens"], ends, logprobs=logprobs, progress=self._progress)
        return {"outputs": outputs}

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Message,
        top: int,
        ends: Sequence[int],
        *,
        phase: str = "",
        logprob_start_len: int = -1,
    ) -> list[dict[str, Any]]:
        asked: dict[str, Any] = {"sampling_params": generation.sampling_params(sampling, ends)}
        if top or logprob_start_len >= 0:
            asked |= {"return_logprob": True, "top_logprobs_num": top, "logprob_start_len": logprob_start_len}
        outputs = self._submit(prompts, asked, doing=f"generating for {len(prompts)} prompts", phase=phase)
        return [generation.answer(output, ends, top=top) for output in outputs]

    def _submit(self, prompts: Sequence[Sequence[int]], asked: Message, *, doing: str, phase: str) -> list[dict[str, Any]]:
        generate = self._live.engine.async_generate
        # SGLang normalizes the sampling parameters of a request in place: each gets its own.
        requested = [
            generate(input_ids=list(prompt), **{**asked, "sampling_params": dict(asked["sampling_params"])}) for prompt in prompts
        ]
        return self._live.wait_for_all(requested, doing=doing, phase=phase)

    def _check_lengths(self, prompts: Sequence[Sequence[int]], *, extra: int = 0, least: int = 1) -> None:
        """SGLang shortens an answer that does not fit without a word, so that it is refused here."""
        facts = self._facts
        room = min(facts["max_req_len"] - 1, facts["max_req_input_len"] + extra - 1)
        requests.check_tokens(prompts, vocab_size=facts["vocab_size"], max_positions=room, extra=extra, least=least)

    def score(self, *, sequences: Sequence[Sequence[int]], cache_path: str = "prefill") -> Message:
        """Log-probabilities of given tokens by one pass, with no prefix cache: a cached position would have none.

        Raises:
            UnsupportedError: the cache path ``decode``.
            BadInputError: sequences that SGLang cannot take in full.
        """
        requests.check_cache_path(cache_path, requests.SCORE_PATHS)
        if cache_path != "prefill":
            raise UnsupportedError(
                "sglang scores given tokens by prefill only",
                "use path prefill, or vllm with the engine argument score_by_decode=true",
            )
        outputs = self._score(sequences, least=2)
        size = self._facts["vocab_size"]
        pairs = zip(outputs, sequences, strict=True)
        return {"logprobs": [generation.prompt_logprobs(output, ids, vocab_size=size) for output, ids in pairs]}

    def score_top(self, *, sequences: Sequence[Sequence[int]], top: int, last: int) -> Message:
        """The last tokens of given sequences, all of them under way at once, with no prefix cache."""
        outputs = self._score(sequences, least=last + 2, top_logprobs_num=top)
        size = self._facts["vocab_size"]
        pairs = zip(outputs, sequences, strict=True)
        return {"scores": [generation.prompt_top(output, ids, last, vocab_size=size) for output, ids in pairs]}

    def _score(self, sequences: Sequence[Sequence[int]], *, least: int, **asked: Any) -> list[dict[str, Any]]:
        self._check_lengths(sequences, extra=1, least=least)
        self._live.flush_cache()
        params = generation.sampling_params(
            {"max_tokens": 1, "temperature": 0, "top_p": 1, "top_k": -1, "repetition_penalty": 1, "seed": 0, "ignore_eos": True}, []
        )
        asked |= {"sampling_params": params, "return_logprob": True, "logprob_start_len": 0}
        return self._submit(sequences, asked, doing=f"scoring {len(sequences)} sequences", phase="scoring")

    def layout(self) -> Message:
        """Every stored tensor, of each rank where there are several, by SGLang's own names."""
        return reports.layout(self._live.ask("rank"), self._live.ask("layout"))

    def memory(self, *, reset_peak: bool = False) -> Message:
        """Over several ranks, each figure of the rank with the most.

        The prefix cache is emptied first, and with it the last batch, which a scheduler holds until the next one: how large that is
        depends on when each prompt arrived.
        """
        self._live.flush_cache()
        return reports.memory(self._live.ask("memory", reset_peak=reset_peak))

    def kv_pool(self) -> Message:
        """The token pool of one data-parallel replica."""
        return reports.kv_pool(self._live.ask("rank"), self._live.ask("pool"), self._facts["context_length"])

    def cache_counters(self) -> Message:
        """Requests that a scheduler has retracted; ranks of tensor parallelism retract the same ones."""
        return {"preemptions": max(answer["retracted"] for answer in self._live.ask("counters"))}

    def reset_prefix_cache(self) -> Message:
        """Empty the radix cache."""
        self._live.flush_cache()
        return {}

    def ranks(self) -> Message:
        """The scheduler processes, which are alive: each has just answered."""
        return {"ranks": reports.ranks(self._live.ask("rank"))}

    def settings(self) -> Message:
        """The arguments in force, as the scheduler holds them, and SGLang's own defaults."""
        states = self._live.wait_for(self._live.engine.tokenizer_manager.get_internal_state(), doing="telling its settings")
        facts = {name: value for name, value in self._facts.items() if name != "device_name"}
        return {
            "resolved": settings.resolved(states[0], self._defaults, {**facts, "page_size": self.kv_pool()["block_size"]}),
            "defaults": {name: settings.plain(value) for name, value in sorted(self._defaults.items()) if settings.stays(name)},
            "versions": self._versions(),
        }

    def calibrate(self) -> Message:
        """The device's rates in the first scheduler; the interpreter's here, since a scheduler's own loop competes with it."""
        return {**self._live.ask("calibrate")[0], "python_loops_per_second": host.python_loops_per_second()}

    def reference_step(self) -> Message:
        """A frozen decode step of torch in the first scheduler."""
        return self._live.ask("reference_step")[0]

    def trace(self, *, batches: Sequence[Sequence[Sequence[int]]], sampling: Message) -> Message:
        """What the first scheduler gives its GPU to do while SGLang generates for each batch."""
        self._live.ask("trace_start")
        for prompts in batches:
            self.generate(prompts=prompts, sampling=sampling)
        return self._live.ask("trace_stop", steps=len(batches) * sampling["max_tokens"])[0]

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called in every scheduler with its share of the model; the first rank's result.

        Raises:
            BadInputError: there is no such file.
        """
        if not Path(path).is_file():
            raise BadInputError(f"there is no file {path} to take {function!r} from")
        return self._live.ask("run", path=path, function=function, arguments=arguments)[0]

    def close(self) -> None:
        """Nothing: the worker's process group ends as one."""


def _has_cpu_kernels() -> bool:
    """Whether SGLang says that its own kernels run on this processor; a version that cannot be asked is left to try."""
    common = importlib.import_module("sglang.srt.utils.common")
    asked = [getattr(common, name, None) for name in ("cpu_has_amx_support", "is_host_cpu_arm64")]
    return None in asked or any(ask() for ask in asked if ask is not None)
