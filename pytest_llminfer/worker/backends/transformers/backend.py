"""The transformers engine as a backend: each request is answered by the module of its name."""

from __future__ import annotations

import gc
import logging
import os
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends import probe, requests
from pytest_llminfer.worker.backends.checkpoint import is_local, read_checkpoint, read_configuration
from pytest_llminfer.worker.backends.transformers.arguments import Arguments
from pytest_llminfer.worker.backends.transformers.packages import require, versions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.base import Message, Progress
    from pytest_llminfer.worker.backends.transformers.memory import Meter


class TransformersBackend:
    """One model of Hugging Face transformers, on the first visible GPU or on the CPU.

    torch and transformers are imported by ``load``, so that what is missing is named before anything heavy happens.
    """

    capabilities = frozenset(
        {"generate", "generate:loop", "generate:no_cache", "score", "layout", "memory", "kv_cache", "settings", "calibrate", "run"}
    )

    _model: Any
    _model_defaults: dict[str, Any]
    _device: torch.device
    _dtype: torch.dtype
    _meter: Meter
    _end_token_ids: list[int]
    _load_peak_bytes: int
    _max_batch_tokens: int
    _limits: dict[str, int]

    def __init__(self, spec: EngineSpec, model_path: str, engine_args: Mapping[str, Any], progress: Progress) -> None:
        self._spec, self._model_path, self._progress = spec, model_path, progress
        self._engine_args = engine_args

    def load(self) -> Message:
        """Look at the files, import the framework, take the idle process as zero of the memory peaks, load the model."""
        requests.check_parallelism(self._spec)
        arguments = Arguments.read(self._engine_args)
        if is_local(self._model_path):
            read_configuration(self._model_path)
            if self._spec.weights == "real":
                read_checkpoint(Path(self._model_path))
        start = time.perf_counter()
        self._import_framework()
        from pytest_llminfer.worker.backends.transformers import device, ending, loading, memory, settings  # noqa: PLC0415

        device.limit_threads()
        config = loading.read_config(self._spec, self._model_path)
        self._dtype = loading.resolve_dtype(self._spec, config)
        dtype_name = loading.SPEC_DTYPES[self._dtype]
        self._check_kv_dtype(dtype_name)
        self._device = device.choose_device()
        loading.model_class(config)
        device.warm_up(self._device, self._dtype)
        # What the imports have made stays: later collections, and the count of live tensors, need not walk through it.
        gc.collect()
        gc.freeze()
        imported = time.perf_counter()

        self._meter = memory.meter_for(self._device)
        self._meter.start()
        self._model = loading.load_model(self._spec, self._model_path, config, self._dtype, self._device, arguments, self._progress)
        self._load_peak_bytes = self._meter.peak_bytes()
        self._meter.reset_peak()
        loaded = time.perf_counter()

        self._end_token_ids = ending.end_token_ids(self._model)
        self._model_defaults = settings.generation_defaults(self._model)
        ending.forget_generation_defaults(self._model)
        text = config.get_text_config()
        self._limits = {"vocab_size": text.vocab_size, "max_positions": getattr(text, "max_position_embeddings", None) or 1 << 30}
        self._max_batch_tokens = arguments.max_batch_tokens or device.default_batch_tokens(
            self._device, device.cache_bytes_per_token(config, self._dtype)
        )
        return {
            "dtype": dtype_name,
            "kv_dtype": dtype_name,
            "device": self._device.type,
            "device_name": device.device_name(self._device),
            "device_count": 1,
            "capabilities": sorted(self.capabilities),
            "versions": self._versions(device.driver_version()),
            "load_seconds": {"import": imported - start, "load": loaded - imported},
            "end_token_ids": self._end_token_ids,
        }

    def generate(
        self, *, prompts: Sequence[Sequence[int]], sampling: Message, logprobs: int = 0, route: str = "engine"
    ) -> Message:
        """Answers in the order of the prompts; route ``engine`` works in batches, the others prompt by prompt."""
        requests.check_sampling(sampling, route=route)
        requests.check_tokens(prompts, extra=sampling["max_tokens"], **self._limits)
        from pytest_llminfer.worker.backends.transformers import generation, loops  # noqa: PLC0415
        from pytest_llminfer.worker.backends.transformers.faults import out_of_memory_named  # noqa: PLC0415

        asked: dict[str, Any] = {"model_end_tokens": self._end_token_ids, "top": logprobs, "progress": self._progress}
        with out_of_memory_named(f"generating for {len(prompts)} prompts"):
            if route == "engine":
                outputs = generation.generate(self._model, prompts, sampling, max_batch_tokens=self._max_batch_tokens, **asked)
            else:
                outputs = loops.generate(self._model, prompts, sampling, cached=route == "loop", **asked)
        return {"outputs": outputs}

    def score(self, *, sequences: Sequence[Sequence[int]], route: str = "prefill") -> Message:
        """Log-probabilities of given tokens; route ``decode`` feeds them one by one."""
        requests.check_route(route, requests.SCORE_ROUTES)
        requests.check_tokens(sequences, least=2, **self._limits)
        from pytest_llminfer.worker.backends.transformers import scoring  # noqa: PLC0415
        from pytest_llminfer.worker.backends.transformers.faults import out_of_memory_named  # noqa: PLC0415

        with out_of_memory_named(f"scoring {len(sequences)} sequences"):
            return {"logprobs": scoring.score(self._model, sequences, decode=route == "decode", progress=self._progress)}

    def layout(self) -> Message:
        """Every stored tensor, as it is stored now."""
        from pytest_llminfer.worker.backends.transformers import layout  # noqa: PLC0415

        return layout.report(self._model)

    def memory(self, *, reset_peak: bool = False) -> Message:
        """What is in use now, and the peaks."""
        from pytest_llminfer.worker.backends.transformers import memory  # noqa: PLC0415

        report = memory.report(self._model, self._device, self._meter, load_peak_bytes=self._load_peak_bytes)
        if reset_peak:
            self._meter.reset_peak()
        return report

    def kv_cache(self, *, prompt: Sequence[int], extend: int) -> Message:
        """The cache after the prompt, and what decoding did to it."""
        requests.check_tokens([prompt], extra=extend, **self._limits)
        from pytest_llminfer.worker.backends.transformers import cache  # noqa: PLC0415
        from pytest_llminfer.worker.backends.transformers.faults import out_of_memory_named  # noqa: PLC0415

        with out_of_memory_named("filling the KV cache"):
            return cache.report(self._model, prompt, extend)

    def settings(self) -> Message:
        """The configuration in force, and the model's own generation defaults, which no request uses."""
        from pytest_llminfer.worker.backends.transformers import settings  # noqa: PLC0415

        return settings.report(self._model, self._model_defaults, max_batch_tokens=self._max_batch_tokens)

    def calibrate(self) -> Message:
        """What the device can do right now."""
        from pytest_llminfer.worker.backends.transformers import calibration  # noqa: PLC0415

        return calibration.measure(self._device, self._dtype)

    def run(self, *, path: str, function: str, arguments: Message) -> Message:
        """The user's function, called with the live model (a ``torch.nn.Module``)."""
        return probe.call_probe(path, function, self._model, arguments)

    def close(self) -> None:
        """Nothing: the end of the process frees the device."""

    def _import_framework(self) -> None:
        needed = ["torch", "transformers"]
        if self._spec.quantization != "none":
            needed += ["accelerate", "bitsandbytes"]
        require(*needed, purpose=f"the engine {self._spec}")
        if is_local(self._model_path):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        import torch  # noqa: PLC0415

        if torch.cuda.is_available():
            require("accelerate", purpose="transformers on a GPU")
        import transformers  # noqa: PLC0415

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        if self._spec.quantization != "none":
            # It repeats one warning at every layer of every step, and asks for a package that would fetch kernels from the network.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            import bitsandbytes  # noqa: F401, PLC0415 - before the idle memory is read

    def _check_kv_dtype(self, dtype_name: str) -> None:
        if self._spec.kv_dtype not in {"auto", dtype_name}:
            raise UnsupportedError(
                f"transformers keeps keys and values in the dtype of the model ({dtype_name}); kv_dtype={self._spec.kv_dtype} is not possible"
            )

    def _versions(self, driver: str | None) -> dict[str, str]:
        found = versions("transformers", "torch", "bitsandbytes" if self._spec.quantization != "none" else "torch")
        found = {"engine": found["transformers"], **found, "python": platform.python_version()}
        if driver and self._device.type == "cuda":
            found["driver"] = driver
        return found
