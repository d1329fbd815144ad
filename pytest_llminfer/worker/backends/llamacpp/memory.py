"""Memory of the worker: what the C library has handed out, and the kernel's peak of the resident set."""

from __future__ import annotations

import ctypes
import gc
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_RESOLUTION = 32 << 20
_SPREAD = 6
# Small objects of the interpreter come and go by a few KiB from one reading to the next.
_STEP = 1 << 20


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


class HostMeter:
    """Use and peaks of this process, above what was in use when ``start`` was called.

    Use: bytes that malloc has handed out and that were not given back (mallinfo2(3), glibc 2.33 and newer), the model, the KV
    cache and the compute buffers of llama.cpp among them; the resident set elsewhere. It is read in steps of 1 MiB from the
    first reading on. Peak: VmHWM of proc(5).
    """

    def __init__(self) -> None:
        self._mallinfo = _find_mallinfo()
        self._idle = 0
        self._floor = 0
        self._first: int | None = None
        self.measured_by = "process resident set" if self._mallinfo is None else "C allocator, peaks: process resident set"

    def start(self) -> None:
        """Take what is in use now, before the model is loaded, as zero."""
        gc.collect()
        _release_free_memory()
        self._idle, self._floor = self._in_use(), _status_bytes("VmRSS")
        self.reset_peak()

    def live_bytes(self) -> int:
        """What is in use beyond the start, to the nearest MiB beyond the first reading."""
        gc.collect()
        now = max(self._in_use() - self._idle, 0)
        if self._first is None:
            self._first = now
        return self._first + round((now - self._first) / _STEP) * _STEP

    def peak_bytes(self) -> int:
        """The kernel's peak of the resident set beyond what was there before the model."""
        return max(_peak_resident() - self._floor, 0)

    def reset_peak(self) -> None:
        """Return freed memory to the kernel, so that it cannot stand in for new memory, and reset the peak."""
        gc.collect()
        _release_free_memory()
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:
            self.measured_by = f"{self.measured_by} since its start"

    def resolution_bytes(self) -> int:
        """A fixed part and a share of the peak."""
        return max(_RESOLUTION, self.peak_bytes() // _SPREAD)

    def _in_use(self) -> int:
        if self._mallinfo is None:
            return _status_bytes("VmRSS")
        found = self._mallinfo()
        return int(found.uordblks + found.hblkhd)


def _find_mallinfo() -> Callable[[], Any] | None:
    try:
        function = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    function.restype = _Mallinfo
    return function


def _status_bytes(field: str) -> int:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _peak_resident() -> int:
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _release_free_memory() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
