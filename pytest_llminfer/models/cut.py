"""A model's own configuration made small: what its KV cache depends on stays, the rest shrinks. Standard library only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.models.files import SHAPES, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping

HIDDEN, INTERMEDIATE, VOCABULARY, WINDOW = 128, 128, 512, 20
"""Upper bounds of a cut configuration. The window is smaller than every sequence that is drawn (``drawing.LENGTHS``)."""

_FREE_HEAD_DIM = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"})
"""Architectures that read ``head_dim``: their hidden size shrinks also where a configuration leaves it to be divided."""
_PATTERNS = {"cohere2": 4, "gemma2": 2, "gemma3_text": 6}
"""Every such layer keeps everything, those between have a window, where a configuration does not say which."""
SLIDING, _FULL = "sliding_attention", "full_attention"
_LAYERS, _HEADS = ("num_hidden_layers", "n_layer", "num_layers"), ("num_attention_heads", "n_head", "num_heads")
_INTERMEDIATE = ("intermediate_size", "n_inner", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")

GEMMA = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 34,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "rope_theta": 1000000.0,
    "sliding_window": 1024,
    "sliding_window_pattern": 6,
    "vocab_size": 262208,
}
"""The text half of Gemma 3 4B: five layers of six have a window."""


def _bundled(name: str) -> dict[str, Any]:
    return read_object(SHAPES / name / "config.json")


STRUCTURES: dict[str, dict[str, Any]] = {
    "gpt2": _bundled("gpt2"),
    "llama-3-8b": _bundled("llama-3-8b"),
    "qwen2.5-7b": _bundled("qwen2.5-7b"),
    "gemma-3-4b": GEMMA,
}
"""Whole configurations by name: multi-head with learned positions, grouped-query, biases, layers with a window."""


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """The sizes from which a KV cache is made.

    Attributes:
        kv_heads: KV heads of a layer.
        head_dim: Elements of one head's key or value.
        windows: Per layer its window in tokens; 0 where a layer keeps everything.
    """

    kv_heads: int
    head_dim: int
    windows: tuple[int, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> CacheSizes:
        """Read a config.json.

        Raises:
            BadInputError: it names no heads, or no layers.
            UnsupportedError: a cache of something else than keys and values of heads.
        """
        text = _text(config)
        other = {kind for kind in _layer_types(text) if kind not in {SLIDING, _FULL}}
        if other or text.get("kv_lora_rank"):
            raise UnsupportedError(
                f"a cache of {', '.join(sorted(other)) or 'latent attention'} has no heads with keys and values",
                "give a model whose layers keep keys and values of heads",
            )
        heads = _size(text, _HEADS)
        hidden = _size(text, ("hidden_size", "n_embd"))
        window = int(text.get("sliding_window") or 0)
        return cls(
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            windows=tuple(window if kind == SLIDING else 0 for kind in _layer_types(text)),
        )


def structure_config(config: Mapping[str, Any], *, layers: int = 2) -> dict[str, Any]:
    """``config`` with ``layers`` layers that computes its cache as the whole model does.

    Kept: heads, KV heads, head size, rotary parameters, biases, norms, activation, and layers with a window in their order, one
    of each run of equal ones. Cut: vocabulary, intermediate sizes, the hidden size where the head size does not follow from
    it, the window (to ``WINDOW`` tokens, so that short sequences exceed it).
    """
    text = dict(_text(config))
    heads, hidden = _size(text, _HEADS), _size(text, ("hidden_size", "n_embd"))
    types = _layer_types(text)
    if text.get("head_dim") or text.get("model_type") in _FREE_HEAD_DIM:
        text["head_dim"] = int(text.get("head_dim") or hidden // heads)
        # Some architectures insist on a multiple of the heads, though nothing is divided by them any more.
        text["hidden_size"] = min(hidden, max(HIDDEN // heads, 1) * heads)
    elif "n_inner" in text or text.get("model_type") == "gpt2":
        text["n_inner"] = INTERMEDIATE
    for name, limit in (("vocab_size", VOCABULARY), *((name, INTERMEDIATE) for name in _INTERMEDIATE)):
        if isinstance(text.get(name), int):
            text[name] = min(text[name], limit)
    for name, value in text.items():
        # Lists with an entry for each layer: which have rotary positions, which are sparse.
        if isinstance(value, list) and len(value) == len(types):
            text[name] = value[:layers]
    text.update({name: layers for name in _LAYERS if name in text})
    if SLIDING in types:
        text["sliding_window"] = min(int(text["sliding_window"]), WINDOW)
        if set(types) != {SLIDING}:
            runs = [kind for kind, _ in itertools.groupby(types)]
            text["layer_types"] = list(itertools.islice(itertools.cycle(runs), layers))
            for name in ("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"):
                text.pop(name, None)
    return {name: value for name, value in text.items() if name not in _TOKENS}


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model of a configuration that may have others beside it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) and "model_type" in nested else config


def _layer_types(text: Mapping[str, Any]) -> list[str]:
    layers, kind = _size(text, _LAYERS), str(text.get("model_type", ""))
    listed = text.get("layer_types")
    if isinstance(listed, list):
        return [str(entry) for entry in listed[:layers]]
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return [_FULL] * layers
    if text.get("use_sliding_window"):
        return [_FULL if layer < int(text.get("max_window_layers", 0)) else SLIDING for layer in range(layers)]
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or _PATTERNS.get(kind)
    return [_FULL if pattern and (layer + 1) % int(pattern) == 0 else SLIDING for layer in range(layers)]


def _size(text: Mapping[str, Any], names: tuple[str, ...]) -> int:
    found = next((text[name] for name in names if text.get(name)), None)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise BadInputError(f"the configuration of model_type {text.get('model_type')!r} has no {' or '.join(names)}")
    return found
