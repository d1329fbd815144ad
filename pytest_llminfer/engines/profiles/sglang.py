"""SGLang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llminfer.engines.profiles.base import FULL, SMALL_CHUNK, Build, Installation, Profile
from pytest_llminfer.predict.buffers import cosines_and_sines_in_fp32
from pytest_llminfer.predict.rules import DeviceSharing, Splitting, Storage


def _tiny_pool(sizes: Any) -> dict[str, Any]:
    return {"max_total_tokens": sizes.tiny_tokens, "schedule_conservativeness": 0.01}


PROFILE = Profile(
    name="sglang",
    backend="pytest_llminfer.worker.backends.sglang.backend:SglangBackend",
    takes_gpus=True,
    capacity_args=frozenset({"max_total_tokens", "mem_fraction_static"}),
    has_transformers=True,
    capabilities=FULL | {"kv_pool", "cache_counters", "reset_prefix_cache", "trace"},
    dummy_weights="device",
    repacks=True,
    storage=Storage(
        fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
        vocabulary_block=64,
        formats=Path(__file__).with_name("sglang.toml"),
    ),
    # 0.5.18, whose Llama makes an output matrix on every stage, and uses that of the last.
    splitting=Splitting(
        roles=("embedding", "attention", "mlp", "bias", "lm_head"),
        every_stage={"llama": ("lm_head",), "mistral": ("lm_head",)},
        tied_stages=False,
    ),
    rotary_bytes=cosines_and_sines_in_fp32,
    # It keeps what lies behind the window of the architectures that are known here.
    sharing=DeviceSharing(utilization=0.88, of_free=True, kv_dtypes=("bf16", "fp8", "fp8_e5m2")),
    installation=Installation(
        distributions=("sglang",),
        modules=("sglang", "torch"),
        attribute="sglang.srt.entrypoints.engine:Engine",
        packages=("sglang",),
        advised="sglang==0.5.18",
    ),
    builds={"sglang": Build(instead_of_gpus="--engine=sglang@/path/to/python runs one that was built for processors")},
    invariant_argument="enable_deterministic_inference",
    variants={
        "no-prefix-caching": {"disable_radix_cache": True},
        "small-chunks": {"chunked_prefill_size": SMALL_CHUNK},
        "eager": {"disable_cuda_graph": True},
        "tiny-pool": _tiny_pool,
        "deterministic-inference": {"enable_deterministic_inference": True},
        "kv-fp8": {},
    },
)
