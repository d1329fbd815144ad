"""What engines register beside the weights: tables of rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.models.shape import item_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.models.shape import ModelShape

_FLOAT = 4
_INVERSE_TABLES = 2
_DEFAULT_POSITIONS = 2048


def rope_bytes(config: Mapping[str, Any], shape: ModelShape, *, engine: str, dtype: str, on_gpu: bool = True) -> int:
    """Bytes of the tables of rotary positions; 0 for a model that learns its positions.

    vLLM: one table of cosines and sines for all layers, ``positions x head_dim`` in the model's dtype (METHODS 4.1). SGLang: the
    same in fp32 on a GPU. Both size it by config.json, however few positions they are told to serve. transformers: the inverse
    frequencies and their copy, ``head_dim / 2`` fp32 each. llama.cpp computes positions on the fly.
    """
    if shape.positions or engine == "llamacpp":
        return 0
    if engine == "transformers":
        return _INVERSE_TABLES * (_FLOAT * shape.head_dim // 2)
    return positions(config) * shape.head_dim * (_FLOAT if engine == "sglang" and on_gpu else item_bytes(dtype))


def positions(config: Mapping[str, Any]) -> int:
    """The longest sequence that config.json allows."""
    for key in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return _DEFAULT_POSITIONS
