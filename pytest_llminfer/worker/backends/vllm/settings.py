"""The configuration in force, and vLLM's own defaults: plain data without paths, ports, ids and times, so that two runs compare."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

_FIELDS: dict[str, tuple[str, str]] = {
    "max_model_len": ("model_config", "max_model_len"),
    "dtype": ("model_config", "dtype"),
    "quantization": ("model_config", "quantization"),
    "enforce_eager": ("model_config", "enforce_eager"),
    "seed": ("model_config", "seed"),
    "max_logprobs": ("model_config", "max_logprobs"),
    "logprobs_mode": ("model_config", "logprobs_mode"),
    "runner_type": ("model_config", "runner_type"),
    "load_format": ("load_config", "load_format"),
    "max_num_seqs": ("scheduler_config", "max_num_seqs"),
    "max_num_batched_tokens": ("scheduler_config", "max_num_batched_tokens"),
    "enable_chunked_prefill": ("scheduler_config", "enable_chunked_prefill"),
    "scheduling_policy": ("scheduler_config", "policy"),
    "async_scheduling": ("scheduler_config", "async_scheduling"),
    "block_size": ("cache_config", "block_size"),
    "gpu_memory_utilization": ("cache_config", "gpu_memory_utilization"),
    "kv_cache_memory_bytes": ("cache_config", "kv_cache_memory_bytes"),
    "kv_cache_dtype": ("cache_config", "cache_dtype"),
    "enable_prefix_caching": ("cache_config", "enable_prefix_caching"),
    "prefix_caching_hash_algo": ("cache_config", "prefix_caching_hash_algo"),
    "num_gpu_blocks": ("cache_config", "num_gpu_blocks"),
    "num_gpu_blocks_override": ("cache_config", "num_gpu_blocks_override"),
    "tensor_parallel_size": ("parallel_config", "tensor_parallel_size"),
    "pipeline_parallel_size": ("parallel_config", "pipeline_parallel_size"),
    "data_parallel_size": ("parallel_config", "data_parallel_size"),
    "distributed_executor_backend": ("parallel_config", "distributed_executor_backend"),
    "disable_custom_all_reduce": ("parallel_config", "disable_custom_all_reduce"),
    "compilation_mode": ("compilation_config", "mode"),
    "compilation_level": ("compilation_config", "level"),
    "compilation_backend": ("compilation_config", "backend"),
    "cudagraph_mode": ("compilation_config", "cudagraph_mode"),
    "max_cudagraph_capture_size": ("compilation_config", "max_cudagraph_capture_size"),
    "use_v2_model_runner": ("", "use_v2_model_runner"),
    "optimization_level": ("", "optimization_level"),
}
"""What decides behaviour, to where vLLM keeps it; what a version does not have is left out."""

_MACHINE = (
    "model", "model_weights", "served_model_name", "tokenizer", "hf_token", "node_rank", "data_parallel_rank",
    "data_parallel_start_rank", "worker_cls", "worker_extension_cls", "scheduler_cls",
)  # fmt: skip
_MACHINE_ENDINGS = ("_path", "_dir", "_port", "_addr", "_address", "_endpoint", "_file", "_plugin")


def resolved(vllm_config: Any, chosen: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide behaviour, flat. chosen: what the ranks have chosen for themselves."""
    found: dict[str, Any] = {}
    cache = vllm_config.cache_config
    pinned = any(getattr(cache, name, None) for name in ("kv_cache_memory_bytes", "num_gpu_blocks_override"))
    for name, (part, attribute) in _FIELDS.items():
        if name == "num_gpu_blocks" and not pinned:
            # Follows the memory that happens to be free; kv_pool reports the capacity.
            continue
        holder = getattr(vllm_config, part, None) if part else vllm_config
        if holder is not None and hasattr(holder, attribute):
            found[name] = plain(getattr(holder, attribute))
    return {**found, **chosen}


def defaults(args_class: Any) -> dict[str, Any]:
    """The engine's own default of every argument, where that is plain data and not about one machine."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(args_class):
        if field.name.startswith("_") or is_about_machine(field.name):
            continue
        value: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is dataclasses.MISSING:
            continue
        try:
            found[field.name] = _strict(value)
        except TypeError:
            continue
    return found


def is_about_machine(name: str) -> bool:
    """Whether an argument's name says that its value is a place, an address or a secret."""
    return name in _MACHINE or name.endswith(_MACHINE_ENDINGS)


def plain(value: Any) -> Any:
    """``value`` in JSON's words: enumerations by name, types and dtypes by their own name."""
    try:
        return _strict(value)
    except TypeError:
        return getattr(value, "__name__", None) or str(value).removeprefix("torch.")


def _strict(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(_strict(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not plain")
