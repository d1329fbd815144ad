"""What ggml calls the device that holds the layers."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from pytest_llminfer.worker.backends.host import processor_name

_GPU = (1, 2)
"""ggml's kinds of device: with memory of its own, and with the host's."""


def device_name(*, offloaded: bool) -> str:
    """The exact name of the first GPU that the build sees, of the processor without one; "unknown GPU" where ggml does not say."""
    if not offloaded:
        return processor_name()
    try:
        return _first_gpu(importlib.import_module("llama_cpp._ggml").libggml) or "unknown GPU"
    except (ImportError, AttributeError):
        return "unknown GPU"


def _first_gpu(ggml: Any) -> str:
    get, kind, describe = ggml.ggml_backend_dev_get, ggml.ggml_backend_dev_type, ggml.ggml_backend_dev_description
    get.argtypes, get.restype = [ctypes.c_size_t], ctypes.c_void_p
    kind.argtypes, describe.argtypes, describe.restype = [ctypes.c_void_p], [ctypes.c_void_p], ctypes.c_char_p
    for number in range(ggml.ggml_backend_dev_count()):
        device = get(number)
        if kind(device) in _GPU:
            return str(describe(device).decode("utf-8", errors="replace"))
    return ""
