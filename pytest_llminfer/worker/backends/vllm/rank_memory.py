"""Memory of one of vLLM's ranks, and its part of the KV pool."""

from __future__ import annotations

import contextlib
import gc
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from pytest_llminfer.worker.backends.transformers.memory import CudaMeter, HostMeter
from pytest_llminfer.worker.backends.transformers.storage import StorageCount
from pytest_llminfer.worker.backends.vllm.rank_layout import repacked_bytes, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENGINE_BOOKS = {
    "activation_peak_bytes": ("peak_activation_memory",),
    "non_torch_bytes": ("non_torch_memory",),
    "graphs_bytes": ("cuda_graph_memory_bytes", "cudagraph_memory_estimate"),
}
"""Fields of MemoryReport, to the attributes of vLLM's worker, of which a version has one or none."""


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
            answer = {
                "device": "cuda" if self._cuda else "cpu",
                "weights_bytes": weights_bytes,
                "buffers_bytes": count.new_bytes(model.buffers()),
                "live_bytes": live_bytes,
                "load_peak_bytes": self._load_peak_bytes,
                "run_peak_bytes": run_peak_bytes,
                "measured_by": self._meter.measured_by,
                "resolution_bytes": self._meter.resolution_bytes(),
                "kv_pool_bytes": count.new_bytes(cache_tensors(worker.model_runner)),
                **{field: _first(worker, names) for field, names in _ENGINE_BOOKS.items()},
            }
            if reset_peak:
                self._meter.reset_peak()
        return answer


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
