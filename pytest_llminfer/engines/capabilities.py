"""What each engine can be asked, told before one starts: a test that needs more is not collected for its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_llminfer.spec import EngineSpec

_EVERY = frozenset(
    {
        *("generate", "generate:no_cache", "generate:logprobs", "score", "score_top"),
        *("layout", "memory", "ranks", "settings", "calibrate", "run"),
    }
)
_LOOP = frozenset({"generate:loop", "score:decode", "kv_cache"})
"""Of engines whose cache a hand-written loop can drive."""

OF_ENGINES = {
    "llamacpp": _EVERY | _LOOP | {"kv_pool"},
    "sglang": _EVERY | {"kv_pool", "cache_counters", "reset_prefix_cache"},
    "simulated": _EVERY | _LOOP,
    "transformers": _EVERY | _LOOP | {"compare_cache_paths"},
    "vllm": _EVERY | {"kv_pool", "cache_counters", "reset_prefix_cache", "score:decode"},
}
"""By engine, the names in ``EngineInfo.capabilities`` that it has, or has if it is started so (vLLM with a prefix cache, say)."""
OF_SERVERS = frozenset({"generate", "generate:messages", "generate:logprobs", "score_top", "settings", "talk"})
"""What a server of any engine may answer over HTTP."""


def possible_capabilities(spec: EngineSpec) -> frozenset[str] | None:
    """What the engine of a cell could answer, by the names in ``EngineInfo.capabilities``; None where nothing is known of it.

    A name that is not among them is answered by no start of this engine. One that is among them may still be missing: how an
    engine was started, and what a server offers, show when it runs.
    """
    if spec.over_http:
        return OF_SERVERS | {"serving:stop"} if spec.serve else OF_SERVERS
    known = OF_ENGINES.get(spec.engine)
    if known is not None and spec.engine == "transformers" and spec.tp > 1:
        return known - {"compare_cache_paths"}
    return known
