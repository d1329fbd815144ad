"""What runs inside each of vLLM's ranks: one method of its worker that answers questions about it."""

from __future__ import annotations

import multiprocessing
import os
import platform
from typing import Any

import torch

from pytest_llminfer.worker.backends import probe
from pytest_llminfer.worker.backends.speed import reference_torch
from pytest_llminfer.worker.backends.speed.device_trace import DeviceTrace
from pytest_llminfer.worker.backends.transformers import calibration
from pytest_llminfer.worker.backends.transformers.device import device_id, driver_version
from pytest_llminfer.worker.backends.transformers.storage import StorageCount
from pytest_llminfer.worker.backends.vllm import rank_layout, rank_memory
from pytest_llminfer.worker.backends.vllm.frames import pack, unpack
from pytest_llminfer.worker.protocol.failures import describe

# This module is imported right before vLLM makes its worker: what is in use now is the zero of the peaks.
_BOOKS = rank_memory.Books()
_TRACES: list[DeviceTrace] = []
"""The one that is being taken."""


class RankExtension:
    """Mixed into vLLM's worker class by name. Nothing that it does changes how the worker works."""

    def llminfer_answer(self, request: bytes) -> bytes:
        """The answer of this rank, or the error, as a frame: an exception would reach the caller as text only."""
        message = unpack(request)
        try:
            with torch.inference_mode():
                result = getattr(_Questions(self), message["ask"])(**message["params"])
        except BaseException as error:  # noqa: BLE001 - whatever a user's probe raises is an answer
            return pack({"error": describe(error)})
        return pack({"result": result})


class _Questions:
    """One rank, by vLLM's worker object."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    @property
    def _model(self) -> Any:
        return self._worker.model_runner.get_model()

    @property
    def _device(self) -> torch.device:
        return torch.device(self._worker.device or "cpu")

    def loaded(self) -> dict[str, Any]:
        """Who this rank is, told once when loading is over."""
        _BOOKS.loaded(self._device)
        process = multiprocessing.current_process().name
        return {**self.rank(), **self._hardware(), "process": process, "compile_seconds": self._compile_seconds()}

    def rank(self) -> dict[str, Any]:
        """The fields of ``Rank``."""
        return {
            "pid": os.getpid(),
            "name": _process_name(),
            "device": device_id(self._device),
            "weights_bytes": rank_layout.stored_bytes(self._model, StorageCount()),
            **self._place(),
        }

    def _place(self) -> dict[str, int]:
        from vllm.distributed.parallel_state import get_pp_group, get_tensor_model_parallel_rank

        return {"tp_rank": int(get_tensor_model_parallel_rank()), "pp_rank": int(get_pp_group().rank_in_group)}

    def layout(self) -> dict[str, Any]:
        """The parameters of this rank; of several with the hash of what each holds."""
        config = self._worker.parallel_config
        spread = config.tensor_parallel_size * config.pipeline_parallel_size > 1
        return {**rank_layout.report(self._model, hashed=spread), **self._place()}

    def memory(self, *, reset_peak: bool) -> dict[str, Any]:
        """The fields of ``MemoryReport`` for this rank."""
        return _BOOKS.report(self._worker, self._model, reset_peak=reset_peak)

    def pool(self) -> dict[str, Any]:
        """This rank's part of the KV pool."""
        return rank_memory.pool(self._worker)

    def calibrate(self) -> dict[str, Any]:
        """What this rank's device can do; nothing but in the first rank, so that ranks do not disturb each other."""
        if self._worker.rank != 0:
            return {}
        return calibration.measure(self._device, self._worker.model_config.dtype)

    def reference_step(self) -> dict[str, Any]:
        """A frozen decode step on this rank's device; nothing but in the first rank."""
        return dict(reference_torch.measure(self._device)) if self._worker.rank == 0 else {}

    def trace_start(self) -> dict[str, Any]:
        """Begin to trace what the first rank's device does."""
        if self._worker.rank == 0:
            _TRACES.append(DeviceTrace(self._device))
            _TRACES[-1].start()
        return {}

    def trace_stop(self, *, steps: int) -> dict[str, Any]:
        """The fields of ``StepTrace`` since it began."""
        return _TRACES.pop().stop(steps=steps) if _TRACES else {}

    def run(self, *, path: str, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The user's function, called with the live model of this rank."""
        return probe.call_probe(path, function, self._model, arguments)

    def backends(self) -> dict[str, Any]:
        """What vLLM has chosen for itself in this rank."""
        groups = getattr(self._worker.model_runner, "attn_groups", None) or []
        names = {
            group.backend.get_name() for entry in groups for group in entry if hasattr(getattr(group, "backend", None), "get_name")
        }
        return {
            "attention_backend": ",".join(sorted(names)) or None,
            "worker": type(self._worker).__name__,
            "model_runner": type(self._worker.model_runner).__name__,
            "model_class": type(self._model).__name__,
        }

    def _compile_seconds(self) -> float:
        return float(getattr(self._worker.compilation_config, "compilation_time", 0.0) or 0.0)

    def _hardware(self) -> dict[str, Any]:
        if self._device.type != "cuda":
            return {"device_name": "", "versions": {"torch": torch.__version__, "python": platform.python_version()}}
        versions = {"torch": torch.__version__, "python": platform.python_version(), "cuda": str(torch.version.cuda)}
        if driver := driver_version():
            versions["driver"] = driver
        return {"device_name": torch.cuda.get_device_name(self._device), "versions": versions}


def _process_name() -> str:
    """As vLLM calls the process, otherwise as Python does."""
    try:
        import setproctitle
    except ImportError:
        return multiprocessing.current_process().name
    return str(setproctitle.getproctitle())
