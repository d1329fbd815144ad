"""What only a scheduler's process knows: its part of the model, its memory and its cache pool. Imported there, after SGLang."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends import probe
from pytest_llminfer.worker.backends.speed import reference_torch
from pytest_llminfer.worker.backends.speed.device_trace import DeviceTrace
from pytest_llminfer.worker.backends.transformers import calibration, faults, layout, memory, storage

if TYPE_CHECKING:
    from collections.abc import Mapping

_GRAPHS_UNIT = 1 << 30


class Inspection:
    """Answers about one rank. ``loaded`` is called once, by the scheduler's main thread, when the model is there."""

    def __init__(self, server_args: Any, *, tp_rank: int, pp_rank: int, dp_rank: int) -> None:
        self._ranks = {"tp_rank": tp_rank, "pp_rank": pp_rank, "dp_rank": dp_rank}
        self._on_cpu = server_args.device == "cpu"
        self._spread = server_args.tp_size * server_args.pp_size > 1
        self._retracted = 0
        if self._on_cpu:
            self._meter: memory.Meter = memory.HostMeter()
            self._meter.start()

    def loaded(self, scheduler: Any) -> None:
        """Take the scheduler, and the peak of its loading."""
        self._scheduler = scheduler
        self._runner = scheduler.tp_worker.model_runner
        self._model = self._runner.model
        self._count_retractions()
        if self._on_cpu:
            self._device = torch.device("cpu")
        else:
            # The allocator counts from the start of the process: nothing was in use before.
            self._device = torch.device("cuda", torch.cuda.current_device())
            self._meter = memory.CudaMeter(self._device)
        self._load_peak = self._meter.peak_bytes()
        self._meter.reset_peak()

    def _count_retractions(self) -> None:
        """SGLang writes their number only to its log: what the function returns is counted on its way."""
        from sglang.srt.managers.schedule_batch import ScheduleBatch

        original = ScheduleBatch.retract_decode

        def retract_decode(batch: Any, *args: Any, **kwargs: Any) -> Any:
            found = original(batch, *args, **kwargs)
            self._retracted += len(found[0])
            return found

        ScheduleBatch.retract_decode = retract_decode

    def answer(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the method ``answer_<method>``."""
        if not self._on_cpu:
            torch.cuda.set_device(self._device)
        with faults.inference(f"answering {method!r}"):
            result: dict[str, Any] = getattr(self, f"answer_{method}")(**params)
        return result

    def answer_facts(self) -> dict[str, Any]:
        """What is resolved once and for all."""
        config, cuda = self._scheduler.model_config, not self._on_cpu
        return {
            "dtype": _name(config.dtype),
            "kv_dtype": _name(self._pool.dtype),
            "device": self._device.type,
            "device_name": torch.cuda.get_device_name(self._device) if cuda else "",
            "vocab_size": int(config.vocab_size),
            "context_length": int(config.context_len),
            "max_req_len": int(self._scheduler.max_req_len),
            "max_req_input_len": int(self._scheduler.max_req_input_len),
            "max_running_requests": int(self._scheduler.max_running_requests),
            "keeps_prefixes": not getattr(self._scheduler.tree_cache, "disable", False),
        }

    def answer_rank(self) -> dict[str, Any]:
        """The fields of ``Rank``, without the process's name."""
        weights = storage.StorageCount().new_bytes(weight.tensor for weight in storage.weights(self._model))
        return {"pid": os.getpid(), "device": self._device_id(), "weights_bytes": weights, **self._ranks}

    def answer_layout(self) -> dict[str, Any]:
        """This rank's share of every parameter, by SGLang's own names (``qkv_proj``, ``gate_up_proj``)."""
        return layout.report(self._model, hashed=self._spread)

    def answer_memory(self, *, reset_peak: bool) -> dict[str, Any]:
        """The fields of ``MemoryReport`` of this rank."""
        report = memory.report(self._model, self._device, self._meter, load_peak_bytes=self._load_peak)
        report |= {"kv_pool_bytes": self._pool_bytes(), "graphs_bytes": self._graphs_bytes()}
        if reset_peak:
            self._meter.reset_peak()
        return report

    def answer_pool(self) -> dict[str, Any]:
        """This rank's part of the pool. slots: tokens that its tensors have room for, the reserved page included."""
        pool = self._pool
        return {
            "tokens": int(self._scheduler.max_total_num_tokens),
            "page_size": int(pool.page_size),
            "slots": int(pool.size) + int(pool.page_size),
            "dtype": _name(pool.dtype),
            "stored_bytes": self._pool_bytes(),
        }

    def answer_counters(self) -> dict[str, Any]:
        """Requests that lost their cache to others, since the start."""
        return {"retracted": self._retracted}

    def answer_calibrate(self) -> dict[str, Any]:
        """What the device can do beside the engine."""
        return calibration.measure(self._device, self._scheduler.model_config.dtype)

    def answer_reference_step(self) -> dict[str, Any]:
        """A frozen decode step on this rank's device; nothing but in the first rank."""
        return {} if any(self._ranks.values()) else dict(reference_torch.measure(self._device))

    def answer_trace_start(self) -> dict[str, Any]:
        """Begin to trace what the first rank's device does."""
        if not any(self._ranks.values()):
            self._trace = DeviceTrace(self._device)
            self._trace.start()
        return {}

    def answer_trace_stop(self, *, steps: int) -> dict[str, Any]:
        """The fields of ``StepTrace`` since it began."""
        return {} if any(self._ranks.values()) else self._trace.stop(steps=steps)

    def answer_run(self, *, path: str, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The user's function with the live model of this rank."""
        return probe.call_probe(path, function, self._model, arguments)

    @property
    def _pool(self) -> Any:
        return self._scheduler.token_to_kv_pool_allocator.get_kvcache()

    def _pool_bytes(self) -> int:
        sizes = self._pool.get_kv_size_bytes()
        return int(sum(sizes) if isinstance(sizes, (list, tuple)) else sizes)

    def _graphs_bytes(self) -> int:
        """What SGLang saw vanish while it captured, in GiB as floats, to the driver's pages of 2 MiB."""
        sizes = getattr(self._scheduler.tp_worker, "graph_memory_usage", None)
        if sizes is None:
            sizes = {"all": getattr(self._runner, "graph_mem_usage", 0.0)}
        return max(int(sum(sizes.values()) * _GRAPHS_UNIT), 0)

    def _device_id(self) -> str:
        if self._on_cpu:
            return "cpu"
        uuid = getattr(torch.cuda.get_device_properties(self._device), "uuid", None)
        return f"GPU-{uuid}" if uuid else os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[self._device.index]


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
