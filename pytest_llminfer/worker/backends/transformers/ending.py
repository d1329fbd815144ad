"""Which tokens end a generation, and how the model's own generation defaults are kept out of it."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig


def end_token_ids(model: Any) -> list[int]:
    """The model's end tokens: what its generation_config says, otherwise its configuration."""
    for holder in (model.generation_config, model.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            return sorted({int(token) for token in (ids if isinstance(ids, (list, tuple)) else [ids])})
    return []


def forget_generation_defaults(model: Any) -> None:
    """``generate`` fills every field that a request leaves unset from the model's generation_config: leave it nothing to find."""
    model.generation_config = GenerationConfig()
