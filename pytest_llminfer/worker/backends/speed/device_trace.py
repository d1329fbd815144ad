"""The trace of what a GPU does, taken by torch's profiler in the process whose kernels they are."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.worker.backends.speed.trace import summarise


class DeviceTrace:
    """Traces kernels, copies and calls of the CUDA runtime between ``start`` and ``stop``; nothing of the host's own operations.

    Taking a trace slows the host down, and not the kernels: wall time is measured without one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._profiler: Any = None

    def start(self) -> None:
        """Begin, once the device has nothing to do.

        Raises:
            UnsupportedError: this process has no GPU.
        """
        if self._device.type != "cuda":
            raise UnsupportedError("only what a GPU does can be traced", "run it on a GPU")
        torch.cuda.synchronize(self._device)
        self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self._profiler.start()

    def stop(self, *, steps: int) -> dict[str, Any]:
        """The fields of ``StepTrace`` since ``start``.

        Raises:
            UnsupportedError: the profiler saw no kernel, as where it may not read the device's counters.
        """
        profiler, self._profiler = self._profiler, None
        torch.cuda.synchronize(self._device)
        profiler.stop()
        with tempfile.TemporaryDirectory(prefix="llminfer-") as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            events = json.loads(file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
        found = summarise(events, steps=steps)
        if not found["kernels"]:
            reason = "torch's profiler saw no kernel in this process"
            raise UnsupportedError(
                reason, "let it read the device's activity (CUPTI), which other profilers and containers may hold"
            )
        return found
