"""The configuration in force, and the generation defaults that the model brings along."""

from __future__ import annotations

import json
from typing import Any

from pytest_llminfer.worker.backends.packages import versions


def report(model: Any, model_defaults: dict[str, Any], **resolved: Any) -> dict[str, Any]:
    """``{"resolved", "defaults", "versions"}``. defaults: read from the model's generation_config, and never used."""
    config = model.config
    quantization = getattr(config, "quantization_config", None)
    return {
        "resolved": {
            "model_type": config.model_type,
            "dtype": str(model.dtype).removeprefix("torch."),
            "attn_implementation": getattr(config, "_attn_implementation", None),
            "max_position_embeddings": getattr(config, "max_position_embeddings", None),
            "sliding_window": getattr(config, "sliding_window", None),
            "tie_word_embeddings": bool(getattr(config, "tie_word_embeddings", False)),
            "device_map": _plain(getattr(model, "hf_device_map", {"": str(model.device)})),
            "quantization_config": _plain(getattr(quantization, "to_dict", lambda: quantization)()),
            **resolved,
        },
        "defaults": model_defaults,
        "versions": versions("transformers", "torch", "bitsandbytes", "accelerate", "tokenizers", "safetensors", "numpy"),
    }


def generation_defaults(model: Any) -> dict[str, Any]:
    """What the model's generation_config sets beyond the neutral values."""
    config = model.generation_config
    return dict(_plain(config.to_diff_dict())) if config is not None else {}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
