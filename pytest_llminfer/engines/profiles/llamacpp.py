"""llama.cpp, through llama-cpp-python."""

from __future__ import annotations

from pytest_llminfer.engines.profiles.base import FULL, LOOP, SMALL_CHUNK, Build, Installation, Profile, Recipe
from pytest_llminfer.predict.buffers import no_table
from pytest_llminfer.predict.rules import DeviceSharing, Splitting, Storage

PROFILE = Profile(
    name="llamacpp",
    backend="pytest_llminfer.worker.backends.llamacpp.backend:LlamacppBackend",
    takes_gpus=True,
    capabilities=FULL | LOOP | {"kv_pool"},
    dummy_weights="host",
    repacks=False,
    storage=Storage(gguf=True),
    # It distributes whole layers over devices, and splits none of them.
    splitting=Splitting(roles=()),
    rotary_bytes=no_table,
    # Keys and values are in fp16 whatever the weights are in; all tokens of the architectures that are known here are kept.
    sharing=DeviceSharing(utilization=1.0, allocator=False, kv_dtypes=("fp32", "bf16", "fp16", "q8_0", "q4_0"), kv_dtype="fp16"),
    installation=Installation(
        distributions=("llama-cpp-python",),
        modules=("llama_cpp", "gguf", "numpy"),
        attribute="llama_cpp:Llama",
        packages=("llama-cpp-python[server]", "gguf"),
        advised="llama-cpp-python==0.3.36",
        gpu_variables="CMAKE_ARGS=-DGGML_CUDA=on",
    ),
    builds={"llama-cpp-python": Build(Recipe(extras=("server",), beside=("gguf>=0.19",)))},
    variants={
        "small-chunks": {"n_batch": SMALL_CHUNK, "n_ubatch": SMALL_CHUNK},
        "kv-q8_0": {"flash_attn": True},
        "kv-q4_0": {"flash_attn": True},
    },
)
