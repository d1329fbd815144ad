"""vLLM's own counters, which it keeps for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_COUNTERS = {
    "preemptions": "vllm:num_preemptions",
    "prefix_queries": "vllm:prefix_cache_queries",
    "prefix_hits": "vllm:prefix_cache_hits",
}


def cache_counters(metrics: Iterable[Any]) -> dict[str, int | None]:
    """The fields of ``CacheCounters``, over all engine cores; None for what this version does not count."""
    values: dict[str, int] = {}
    for metric in metrics:
        if isinstance(value := getattr(metric, "value", None), (int, float)):
            values[metric.name] = values.get(metric.name, 0) + int(value)
    return {field: values.get(name) for field, name in _COUNTERS.items()}
