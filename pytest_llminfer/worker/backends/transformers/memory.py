"""Memory in use: torch's allocator on a GPU, tensors and the process's resident set on a CPU."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path
from typing import Any, Protocol

import torch

from pytest_llminfer.worker.backends.transformers import storage

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CUDA_RESOLUTION = 512
# Seen over repeated loads and runs of a small model: code that is paged in at its first use adds up to 25 MB, and the C allocator
# keeps freed pieces of a growing cache, which spreads the peak of one and the same batch by a sixth.
_HOST_RESOLUTION = 32 << 20
_HOST_SPREAD = 6


class Meter(Protocol):
    """Reads use and peaks of one device."""

    measured_by: str

    def start(self) -> None:
        """Take what is in use now, before the model is loaded, as zero of the peaks."""

    def live_bytes(self) -> int:
        """Bytes that the framework holds."""

    def peak_bytes(self) -> int:
        """The highest use since the last reset, above what was in use at the start."""

    def reset_peak(self) -> None:
        """Reset the peak to what is in use now."""

    def resolution_bytes(self) -> int:
        """Differences of the current peak that mean nothing."""


class CudaMeter:
    """The allocator of torch: exact to its rounding of 512 bytes. The CUDA context is not in it."""

    measured_by = "torch allocator"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._idle = 0

    def start(self) -> None:
        """The allocator counts from the start of the process."""
        self._idle = torch.cuda.memory_allocated(self._device)
        self.reset_peak()

    def live_bytes(self) -> int:
        """Blocks in use, as rounded."""
        return int(torch.cuda.memory_allocated(self._device))

    def peak_bytes(self) -> int:
        """The most that was in use, cuBLAS workspaces taken before the start left out."""
        return int(torch.cuda.max_memory_allocated(self._device)) - self._idle

    def reset_peak(self) -> None:
        """The allocator keeps the peak."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def resolution_bytes(self) -> int:
        """A block is a multiple of this."""
        return _CUDA_RESOLUTION


class HostMeter:
    """The process's resident set, whose peak the kernel keeps (VmHWM, reset by writing 5 to /proc/self/clear_refs; proc(5)).

    It holds whatever the process touches, code pages and thread stacks included, which sets the resolution. Where the kernel does
    not reset it, the peak is that of the whole process.
    """

    measured_by = "process resident set"

    def __init__(self) -> None:
        self._floor = 0

    def start(self) -> None:
        """Nothing of the model is there yet: what is resident now is the zero of the load peak."""
        self.reset_peak()

    def live_bytes(self) -> int:
        """Storages of all live tensors, each once, views of one counted together."""
        return storage.StorageCount().new_bytes(
            item for item in gc.get_objects() if issubclass(type(item), torch.Tensor) and _holds_host_memory(item)
        )

    def peak_bytes(self) -> int:
        """The kernel's peak of the resident set."""
        return max(_peak_resident() - self._floor, 0)

    def reset_peak(self) -> None:
        """Freed memory that the allocator holds would stand in for new memory and hide the next peak: give it back first.

        What stays resident beside live tensors (pages that the allocator cannot return, kernels loaded meanwhile) is no part
        of the next peak: it depends on what ran before. Live tensors are.
        """
        gc.collect()
        _release_free_memory()
        self._floor = _status_bytes("VmRSS") - self.live_bytes()
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            self.measured_by = "process resident set since its start"

    def resolution_bytes(self) -> int:
        """A fixed part and a share of the peak."""
        return max(_HOST_RESOLUTION, self.peak_bytes() // _HOST_SPREAD)


def meter_for(device: torch.device) -> Meter:
    """The meter of the device that will hold the model."""
    return CudaMeter(device) if device.type == "cuda" else HostMeter()


def report(model: Any, device: torch.device, meter: Meter, *, load_peak_bytes: int) -> dict[str, Any]:
    """The fields of ``MemoryReport``."""
    # Garbage that waits for a collection is no leak.
    gc.collect()
    weights = storage.StorageCount()
    weights_bytes = weights.new_bytes(tensor for weight in storage.weights(model) for tensor in (weight.tensor, *weight.state))
    return {
        "device": device.type,
        "weights_bytes": weights_bytes,
        "buffers_bytes": weights.new_bytes(storage.other_buffers(model)),
        "live_bytes": meter.live_bytes(),
        "load_peak_bytes": load_peak_bytes,
        "run_peak_bytes": meter.peak_bytes(),
        "measured_by": meter.measured_by,
        "resolution_bytes": meter.resolution_bytes(),
    }


def _holds_host_memory(tensor: torch.Tensor) -> bool:
    """Not the handle of a tensor that is split over ranks: this rank's part of it is a tensor of its own."""
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or hasattr(type(tensor), "to_local"):
        return False
    # A shape without memory, which torch.compile leaves behind, says that it is on the CPU and stores its bytes nowhere.
    return bool(tensor.untyped_storage().device.type == "cpu")


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _peak_resident() -> int:
    try:
        return _status_bytes("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _release_free_memory() -> None:
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
