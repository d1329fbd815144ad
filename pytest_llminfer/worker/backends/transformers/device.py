"""Where the model goes, and the exact name of that device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pytest_llminfer.worker.backends.host import available_bytes, available_cores, processor_name

_CUDA_BATCH_TOKENS, _CPU_BATCH_TOKENS = 1 << 17, 1 << 15
_CACHE_SHARE = 0.4


def choose_device(rank: int) -> torch.device:
    """Of the GPUs that this process may see, the one of its rank; otherwise the CPU."""
    return torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")


def device_id(device: torch.device) -> str:
    """The accelerator's id, which holds for every process of the machine; ``cpu`` for the processor."""
    if device.type != "cuda":
        return "cpu"
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{uuid}" if uuid else str(device)


def device_name(device: torch.device) -> str:
    """The exact name of the accelerator or processor: baselines are kept by it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def driver_version() -> str | None:
    """The kernel driver's version, which torch does not report."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split("\n")[0].split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and "." in word), None)


def limit_threads() -> None:
    """Leave a core to the rest of the machine: spinning threads on a busy one slow generation many times over."""
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, available_cores() - 1))


def warm_up(device: torch.device, dtype: torch.dtype) -> None:
    """Make the libraries take what they keep for ever (workspaces, thread stacks), so that it is not counted as the model's."""
    matrix = torch.ones(256, 256, device=device, dtype=dtype)
    torch.mm(matrix, matrix)
    torch.nn.functional.scaled_dot_product_attention(*[matrix.view(1, 4, 64, 256)] * 3)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token: 2 x layers x KV heads x head dimension x bytes of a value."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * head_dim * dtype.itemsize)


def default_batch_tokens(device: torch.device, cache_bytes_per_token: int) -> int:
    """Tokens that a batch may hold: a share of the free memory, as a power of two.

    Batches decide how sums are rounded, so the number must not follow every byte that happens to be free.
    """
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else available_bytes()
    most = _CUDA_BATCH_TOKENS if cuda else _CPU_BATCH_TOKENS
    fitting = int(free * _CACHE_SHARE) // max(cache_bytes_per_token, 1) if free else most
    return min(most, 1 << max(fitting.bit_length() - 1, 0))
