"""A loaded model and what belongs to it: where it lies, what it may be asked, and the memory measured around its loading."""

from __future__ import annotations

import gc
import os
import platform
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends.packages import versions
from pytest_llminfer.worker.backends.requests import check_tokens
from pytest_llminfer.worker.backends.speed import reference_torch
from pytest_llminfer.worker.backends.speed.device_trace import DeviceTrace
from pytest_llminfer.worker.backends.transformers import (
    cache,
    calibration,
    device,
    ending,
    generation,
    layout,
    loading,
    loops,
    memory,
    path_comparison,
    scoring,
    settings,
    sharding,
    storage,
)
from pytest_llminfer.worker.backends.transformers.cache_paths import positions
from pytest_llminfer.worker.backends.transformers.faults import inference
from pytest_llminfer.worker.backends.transformers.group import own_rank
from pytest_llminfer.worker.backends.transformers.parallelism import check_heads
from pytest_llminfer.worker.backends.transformers.random_model import RandomModels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    import torch

    from pytest_llminfer.spec import EngineSpec
    from pytest_llminfer.worker.backends.transformers.arguments import Arguments

    Progress = Callable[[str, int, int], None]

_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A loaded model, and every request in the words of torch.

    Of a model that is split over ranks this is one rank's part: all ranks must get the same requests in the same order.

    Attributes:
        spec: The cell.
        model: The ``PreTrainedModel``.
        device: Where its weights lie.
        dtype: What it computes in.
        meter: Reads use and peaks of the device.
        load_peak_bytes: Highest use of memory while loading, above what was in use before.
        load_seconds: Seconds of the phases ``import`` and ``load``.
        end_token_ids: Tokens that end an answer, in rising order.
        generation_defaults: What the model's generation_config set before it was replaced by an empty one.
        max_batch_tokens: Prompt and generated tokens that a batch may hold.
        limits: ``vocab_size`` and ``max_positions``, as ``requests.check_tokens`` takes them.
        progress: Called with (phase, done, total).
        random_models: Keeps the last model made from a configuration.
    """

    spec: EngineSpec
    model: Any
    device: torch.device
    dtype: torch.dtype
    meter: memory.Meter
    load_peak_bytes: int
    load_seconds: dict[str, float]
    end_token_ids: list[int]
    generation_defaults: dict[str, Any]
    max_batch_tokens: int
    limits: dict[str, int]
    progress: Progress
    random_models: RandomModels = field(default_factory=RandomModels)

    @classmethod
    def load(cls, spec: EngineSpec, model_path: str, arguments: Arguments, progress: Progress, *, started: float) -> Self:
        """Take the idle process as zero of the memory peaks, then load. started: ``time.perf_counter`` when the import began.

        Raises:
            UnsupportedError: a KV dtype other than the model's, or a model that transformers does not split.
            BadInputError, EngineStartError, OutOfMemoryError: the model cannot be read, built or held.
        """
        device.limit_threads()
        config = loading.read_config(spec, model_path)
        dtype = loading.resolve_dtype(spec, config)
        if spec.kv_dtype not in {"auto", loading.SPEC_DTYPES[dtype]}:
            raise UnsupportedError(
                f"transformers keeps keys and values in the dtype of the model ({loading.SPEC_DTYPES[dtype]}), "
                f"and not in {spec.kv_dtype}",
                f"use kv_dtype=auto, or dtype={spec.kv_dtype}",
            )
        if spec.tp > 1:
            check_heads(config.to_dict(), spec.tp)
            sharding.check_plan(config)
            sharding.join(spec)
        place = device.choose_device(own_rank())
        loading.model_class(config)
        device.warm_up(place, dtype)
        # What the imports have made stays: later collections, and the count of live tensors, need not walk through it.
        gc.collect()
        gc.freeze()
        imported = time.perf_counter()
        meter = memory.meter_for(place)
        meter.start()
        model = loading.load_model(spec, model_path, config, dtype, place, arguments, progress)
        load_peak_bytes = meter.peak_bytes()
        meter.reset_peak()
        loaded = time.perf_counter()
        end_token_ids, defaults = ending.end_token_ids(model), settings.generation_defaults(model)
        ending.forget_generation_defaults(model)
        text = config.get_text_config()
        batch_tokens = arguments.max_batch_tokens or device.default_batch_tokens(place, device.cache_bytes_per_token(config, dtype))
        return cls(
            spec=spec,
            model=model,
            device=place,
            dtype=dtype,
            meter=meter,
            load_peak_bytes=load_peak_bytes,
            load_seconds={"import": imported - started, "load": loaded - imported},
            end_token_ids=end_token_ids,
            generation_defaults=defaults,
            max_batch_tokens=sharding.agree_on_least(batch_tokens, place) if spec.tp > 1 else batch_tokens,
            limits={"vocab_size": text.vocab_size, "max_positions": getattr(text, "max_position_embeddings", None) or _NO_LIMIT},
            progress=progress,
        )

    @property
    def spec_dtype(self) -> str:
        """What it computes in, in the words of a cell."""
        return loading.SPEC_DTYPES[self.dtype]

    def information(self, *packages: str) -> dict[str, Any]:
        """The fields of ``EngineInfo`` but the capabilities, with the versions of ``packages``."""
        found = versions("transformers", *packages)
        driver = device.driver_version() if self.device.type == "cuda" else None
        return {
            "dtype": loading.SPEC_DTYPES[self.dtype],
            "kv_dtype": loading.SPEC_DTYPES[self.dtype],
            "device": self.device.type,
            "device_name": device.device_name(self.device),
            "device_count": self.spec.tp,
            "versions": {
                "engine": found["transformers"],
                **found,
                "python": platform.python_version(),
                **({"driver": driver} if driver else {}),
            },
            "load_seconds": self.load_seconds,
            "end_token_ids": self.end_token_ids,
        }

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Mapping[str, Any], top: int, cache_path: str
    ) -> list[dict[str, Any]]:
        """One answer a prompt, in order."""
        asked: dict[str, Any] = {"model_end_tokens": self.end_token_ids, "top": top, "progress": self.progress}
        with inference(f"generating for {len(prompts)} prompts"):
            if cache_path == "engine":
                return generation.generate(self.model, prompts, sampling, max_batch_tokens=self.max_batch_tokens, **asked)
            return loops.generate(self.model, prompts, sampling, cached=cache_path == "loop", **asked)

    def score(self, sequences: Sequence[Sequence[int]], cache_path: str) -> list[Any]:
        """Log-probabilities (T-1,) of each sequence."""
        with inference(f"scoring {len(sequences)} sequences"):
            return scoring.score(self.model, sequences, decode=cache_path == "decode", progress=self.progress)

    def score_top(self, sequences: Sequence[Sequence[int]], top: int, last: int) -> list[dict[str, Any]]:
        """The fields of ``Scores`` of each sequence."""
        with inference(f"scoring {len(sequences)} sequences"):
            batches = scoring.batches(sequences, max_batch_tokens=self.max_batch_tokens)
            return scoring.score_top(self.model, sequences, batches, top=top, last=last, progress=self.progress)

    def cache_report(self, prompt: Sequence[int], extend: int) -> dict[str, Any]:
        """The fields of ``CacheReport``."""
        with inference("filling the KV cache"):
            return cache.report(self.model, prompt, extend)

    def compare_cache_paths(
        self,
        sequences: Sequence[Sequence[int]],
        cache_paths: Mapping[str, Mapping[str, Any]],
        config: Mapping[str, Any] | None,
        dtype: str,
        seed: int,
    ) -> dict[str, Any]:
        """The fields of ``CachePathComparisons``: of this model, or of one with random weights that ``config`` describes."""
        with inference(f"comparing cache paths over {len(sequences)} sequences"):
            model = self.model
            if config is not None:
                attention = self.model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
                model = self.random_models.get(config, dtype, seed, device=self.device, attention=attention)
            text = model.config.get_text_config()
            check_tokens(sequences, vocab_size=text.vocab_size, max_positions=positions(text))
            return path_comparison.compare(model, sequences, **cache_paths, progress=self.progress)

    def layout(self) -> dict[str, Any]:
        """Every stored tensor, as it is stored now."""
        place = {"tp_rank": own_rank()} if self.spec.tp > 1 else {}
        return {**layout.report(self.model, hashed=self.spec.tp > 1), **place}

    def memory(self, *, reset_peak: bool) -> dict[str, Any]:
        """The fields of ``MemoryReport``."""
        report = memory.report(self.model, self.device, self.meter, load_peak_bytes=self.load_peak_bytes)
        if reset_peak:
            self.meter.reset_peak()
        return report

    def settings(self) -> dict[str, Any]:
        """The configuration in force, and the model's own defaults."""
        return settings.report(
            self.model,
            self.generation_defaults,
            max_batch_tokens=self.max_batch_tokens,
            tp_size=self.spec.tp,
            tp_plan=sharding.plan(self.model) if self.spec.tp > 1 else {},
        )

    def rank(self) -> dict[str, Any]:
        """The fields of ``Rank`` for this process."""
        number = own_rank()
        tensors = (tensor for weight in storage.weights(self.model) for tensor in (weight.tensor, *weight.state))
        return {
            "pid": os.getpid(),
            "name": f"transformers rank {number}",
            "device": device.device_id(self.device),
            "weights_bytes": storage.StorageCount().new_bytes(tensors),
            "tp_rank": number,
        }

    @property
    def kv_heads(self) -> int:
        """KV heads of a layer of the whole model."""
        text = self.model.config.get_text_config()
        return getattr(text, "num_key_value_heads", None) or int(text.num_attention_heads)

    @property
    def capabilities(self) -> set[str]:
        """What this device answers: only what a GPU does can be traced."""
        return {"trace"} if self.device.type == "cuda" else set()

    def reference_step(self) -> dict[str, Any]:
        """The fields of ``ReferenceStep``."""
        with inference("timing a reference step"):
            return reference_torch.measure(self.device)

    def trace(self, batches: Sequence[Sequence[Sequence[int]]], sampling: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ``StepTrace``."""
        device_trace = DeviceTrace(self.device)
        device_trace.start()
        for prompts in batches:
            self.generate(prompts, sampling, 0, "engine")
        return device_trace.stop(steps=len(batches) * sampling["max_tokens"])

    def calibrate(self) -> dict[str, float]:
        """The fields of ``Calibration``."""
        with inference("calibrating"):
            return calibration.measure(self.device, self.dtype)
