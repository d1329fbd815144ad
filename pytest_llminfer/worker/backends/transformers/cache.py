"""The KV cache of one prompt, before and after decoding continues."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from transformers import DynamicCache

from pytest_llminfer.worker.backends.transformers.loops import next_logits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


def report(model: Any, prompt: Sequence[int], extend: int) -> dict[str, Any]:
    """The fields of ``CacheReport``: a snapshot after the prompt, and the same positions after ``extend`` greedy tokens."""
    cache = DynamicCache(config=model.config)
    logits = next_logits(model, prompt, cache)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]
    for _ in range(extend):
        logits = next_logits(model, [int(logits.argmax(dim=-1))], cache)
    after = [(layer.keys, layer.values) for layer in cache.layers]
    return {
        "prompt_tokens": len(prompt),
        "extended_tokens": extend,
        "layers": [_layer(*pair) for pair in before],
        "extended_layers": [_layer(*pair) for pair in after],
        "prefix_differences": [
            [_prefix_difference(old, new, extend) for old, new in zip(snapshot, live, strict=True)]
            for snapshot, live in zip(before, after, strict=True)
        ],
    }


def _layer(keys: torch.Tensor, values: torch.Tensor) -> dict[str, Any]:
    return {
        "key_shape": list(keys.shape),
        "value_shape": list(values.shape),
        "dtype": str(keys.dtype).removeprefix("torch."),
        "stored_bytes": keys.nbytes + values.nbytes,
    }


def _prefix_difference(old: torch.Tensor, new: torch.Tensor, extend: int) -> float:
    """Largest absolute difference at the positions that both hold; a sliding layer has dropped its oldest ones.

    NaN where no position is known to be in both, so that nothing compared is not taken for nothing changed.
    """
    dropped = old.shape[-2] + extend - new.shape[-2]
    kept = old.shape[-2] - dropped
    if dropped < 0 or kept <= 0:
        return math.nan
    return float((old[..., dropped:, :].float() - new[..., :kept, :].float()).abs().max())
