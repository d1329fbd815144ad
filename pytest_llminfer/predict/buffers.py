"""What engines register beside the weights: tables of rotary positions. A profile names one of these rules, or its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_llminfer.models.shape import item_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.models.shape import ModelShape
    from pytest_llminfer.predict.rules import EngineRules

_FLOAT = 4
_INVERSE_TABLES = 2
_DEFAULT_POSITIONS = 2048


def rope_bytes(config: Mapping[str, Any], shape: ModelShape, *, engine: EngineRules, dtype: str, on_gpu: bool = True) -> int:
    """Bytes of the tables of rotary positions, by the engine's own rule; 0 for a model that learns its positions.

    Raises:
        UnsupportedError: the engine's profile does not say ``rotary_bytes``.
    """
    if engine.rotary_bytes is None:
        raise engine.unsaid("rotary_bytes", f"what tables of rotary positions take in {engine.name}")
    return 0 if shape.positions else engine.rotary_bytes(config, shape, dtype, on_gpu)


def no_table(_config: Mapping[str, Any], _shape: ModelShape, _dtype: str, _on_gpu: bool) -> int:  # noqa: FBT001 - one signature
    """llama.cpp computes positions on the fly."""
    return 0


def inverse_frequencies(_config: Mapping[str, Any], shape: ModelShape, _dtype: str, _on_gpu: bool) -> int:  # noqa: FBT001 - likewise
    """transformers: the inverse frequencies and their copy, ``head_dim / 2`` fp32 each."""
    return _INVERSE_TABLES * (_FLOAT * shape.head_dim // 2)


def cosines_and_sines(config: Mapping[str, Any], shape: ModelShape, dtype: str, _on_gpu: bool) -> int:  # noqa: FBT001 - likewise
    """vLLM: one table for all layers, ``positions x head_dim`` in the model's dtype (docs/methods.md#rotary-tables).

    Sized by config.json, however few positions the engine serves.
    """
    return positions(config) * shape.head_dim * item_bytes(dtype)


def cosines_and_sines_in_fp32(config: Mapping[str, Any], shape: ModelShape, dtype: str, on_gpu: bool) -> int:  # noqa: FBT001 - likewise
    """SGLang: the same in fp32 on a GPU."""
    return positions(config) * shape.head_dim * (_FLOAT if on_gpu else item_bytes(dtype))


def positions(config: Mapping[str, Any]) -> int:
    """The longest sequence that config.json allows."""
    for key in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return _DEFAULT_POSITIONS
