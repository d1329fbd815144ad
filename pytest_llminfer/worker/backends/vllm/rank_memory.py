"""Memory of one of vLLM's ranks, and its part of the KV pool."""

from __future__ import annotations

import contextlib
import gc
import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from pytest_llminfer.worker.backends.transformers.memory import CudaMeter, HostMeter
from pytest_llminfer.worker.backends.transformers.storage import StorageCount
from pytest_llminfer.worker.backends.vllm.rank_layout import repacked_bytes, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_ENGINE_BOOKS = {
    "activation_peak_bytes": ("peak_activation_memory",),
    "non_torch_bytes": ("non_torch_memory",),
    "graphs_estimate_bytes": ("cudagraph_memory_estimate",),
    "engine_weights_bytes": ("model_memory_usage",),
    "requested_bytes": ("requested_memory",),
}
"""Fields of MemoryReport, to the attributes of vLLM's worker or its model runner: they have them on a GPU, all of them only where
the pool was sized by profiling (``determine_available_memory`` of gpu_worker.py, 0.25.1).
"""
_SHARED_OUT = ("engine_weights_bytes", "non_torch_bytes", "activation_peak_bytes")


class RankMeter(HostMeter):
    """The resident set of a rank, in which a compiler may have left tensors that hold no memory."""

    def live_bytes(self) -> int:
        """Storages of all live tensors, each once."""
        return StorageCount().new_bytes(
            item
            for item in gc.get_objects()
            if issubclass(type(item), torch.Tensor) and not isinstance(item, FakeTensor) and _holds_host_memory(item)
        )


def _holds_host_memory(tensor: torch.Tensor) -> bool:
    return bool(tensor.device.type == "cpu" and tensor.layout == torch.strided)


class Books:
    """The memory of this rank, from before the model is loaded."""

    def __init__(self) -> None:
        self._host = RankMeter()
        self._cuda: CudaMeter | None = None
        self._load_peak_bytes = 0
        gc.collect()
        self._host.start()

    def loaded(self, device: torch.device) -> None:
        """Loading is over: keep its peak, and let that of requests begin."""
        if device.type == "cuda":
            self._cuda = CudaMeter(device)
        self._load_peak_bytes = self._meter.peak_bytes()
        with _thawed():
            self._meter.reset_peak()

    @property
    def _meter(self) -> CudaMeter | HostMeter:
        return self._cuda or self._host

    def report(self, worker: Any, model: Any, *, reset_peak: bool) -> dict[str, Any]:
        """The fields of ``MemoryReport`` for this rank."""
        count = StorageCount()
        weights_bytes = stored_bytes(model, count)
        run_peak_bytes = self._meter.peak_bytes()
        with _thawed():
            live_bytes = self._meter.live_bytes() + (0 if self._cuda else repacked_bytes(model))
            pool_bytes = count.new_bytes(cache_tensors(worker.model_runner))
            answer = {
                "device": "cuda" if self._cuda else "cpu",
                "weights_bytes": weights_bytes,
                "buffers_bytes": count.new_bytes(model.buffers()),
                "live_bytes": live_bytes,
                "load_peak_bytes": self._load_peak_bytes,
                "run_peak_bytes": run_peak_bytes,
                "measured_by": self._meter.measured_by,
                "resolution_bytes": self._meter.resolution_bytes(),
                "kv_pool_bytes": pool_bytes,
                **(_books(worker, pool_bytes) if self._cuda else {}),
            }
            if reset_peak:
                self._meter.reset_peak()
        return answer


def _books(worker: Any, pool_bytes: int) -> dict[str, int | None]:
    """What vLLM has written down of a GPU, and what it comes to together with the pool that it took.

    accounted_bytes: weights, non-torch memory, activation peak, graphs where they are subtracted, and the pool: what was
    requested, less the part of a block that is left over. None where the pool was given and nothing was profiled.
    """
    books = {field: _first(worker, names) for field, names in _ENGINE_BOOKS.items()}
    parts = [books[name] for name in _SHARED_OUT]
    estimate = (books["graphs_estimate_bytes"] or 0) if _graphs_are_subtracted() else 0
    known = [part for part in parts if part is not None]
    accounted = sum(known) + estimate + pool_bytes if len(known) == len(parts) else None
    return {**books, "graphs_bytes": graph_pool_bytes(torch.cuda.memory_snapshot()), "accounted_bytes": accounted}


def _graphs_are_subtracted() -> bool:
    """Whether the estimate of CUDA graphs is taken out of the pool: by default since 0.21."""
    envs = importlib.import_module("vllm.envs")
    return bool(getattr(envs, "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", False))


def graph_pool_bytes(segments: Iterable[Mapping[str, Any]]) -> int:
    """Bytes of the allocator's segments in the private pools of captured graphs. segments: of ``torch.cuda.memory_snapshot()``."""
    return sum(int(segment["total_size"]) for segment in segments if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0))


@contextlib.contextmanager
def _thawed() -> Iterator[None]:
    """See what vLLM has hidden from the garbage collector, and hide it again: live tensors are counted through it."""
    frozen = gc.get_freeze_count()
    if frozen:
        gc.unfreeze()
    gc.collect()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()


def _first(worker: Any, names: tuple[str, ...]) -> int | None:
    for holder in (worker, worker.model_runner):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return int(value)
    return None


def cache_tensors(runner: Any) -> list[torch.Tensor]:
    """Every tensor of this rank's KV cache."""
    found: list[torch.Tensor] = []
    for entry in getattr(runner, "kv_caches", None) or []:
        found += [entry] if isinstance(entry, torch.Tensor) else [part for part in entry if isinstance(part, torch.Tensor)]
    return found


def pool(worker: Any) -> dict[str, Any]:
    """What this rank holds of the KV pool: bytes, dtype, and the tokens of each block."""
    tensors = cache_tensors(worker.model_runner)
    return {
        "stored_bytes": StorageCount().new_bytes(tensors),
        "dtype": str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
        "layers": len(tensors),
    }
