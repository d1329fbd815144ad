"""Which predictions another token changes, in a model whose layers have windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_llminfer.worker.backends.transformers import path_cache, random_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np


def changes(model: Any, *, config: Mapping[str, Any], tokens: Sequence[int], position: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Of a random model in fp32, per position (T,) the largest change of a logit once the token at ``position`` is another one.

    Returns them for ``prefill`` and for ``decode``, token by token over the cache that the configuration implies.
    """
    attention = model.config._attn_implementation  # noqa: SLF001 - transformers has no public name for it
    small = random_model.make(config, "fp32", seed, device=model.device, attention=attention)
    other = list(tokens)
    other[position] = (other[position] + 1) % small.config.get_text_config().vocab_size
    with torch.inference_mode():
        return {
            way.__name__.strip("_"): (way(small, other) - way(small, tokens)).abs().amax(dim=-1).cpu().numpy()
            for way in (_prefill, _decode)
        }


def _prefill(model: Any, ids: Sequence[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([list(ids)], device=model.device), use_cache=False).logits[0]


def _decode(model: Any, ids: Sequence[int]) -> torch.Tensor:
    cache = path_cache.make(model.config, "dynamic")
    steps = [
        model(input_ids=torch.tensor([[token]], device=model.device), past_key_values=cache, use_cache=True).logits[0]
        for token in ids
    ]
    return torch.cat(steps)
