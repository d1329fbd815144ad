"""Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path

from pytest_llminfer.engines.profiles.base import FULL, LOOP, Build, Installation, Profile, Recipe
from pytest_llminfer.predict.buffers import inverse_frequencies
from pytest_llminfer.predict.rules import DeviceSharing, Splitting, Storage

PROFILE = Profile(
    name="transformers",
    backend="pytest_llminfer.worker.backends.transformers.backend:TransformersBackend",
    takes_gpus=True,
    has_transformers=True,
    capabilities=FULL | LOOP | {"compare_cache_paths", "trace"},
    unsplit_capabilities=frozenset({"compare_cache_paths"}),
    dummy_weights="host",
    repacks=False,
    # Cells ask bitsandbytes for nested scales with nf4 and not with fp4.
    storage=Storage(formats=Path(__file__).with_name("transformers.toml"), nested_scales=("nf4",)),
    # 5.23: base_model_tp_plan
    splitting=Splitting(roles=("attention", "mlp", "bias"), plan=("embedding", "lm_head")),
    rotary_bytes=inverse_frequencies,
    sharing=DeviceSharing(utilization=1.0, windows=True),
    installation=Installation(
        distributions=("transformers",),
        modules=("transformers", "torch", "accelerate", "safetensors"),
        attribute="transformers:AutoModelForCausalLM",
        packages=("transformers", "torch", "accelerate", "safetensors"),
    ),
    builds={
        "transformers": Build(Recipe(beside=("torch>=2.8", "accelerate>=1.10", "bitsandbytes>=0.48", "safetensors>=0.5"))),
    },
)
