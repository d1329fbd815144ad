"""A Llama in NumPy, float32: RMSNorm, RoPE, grouped-query attention, SwiGLU (arXiv 2302.13971, 2104.09864, 2305.13245, 2002.05202).

Written from the papers, not from a framework's code: an independent implementation to compare engines with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.worker.backends.simulated.kv_cache import KVCache

if TYPE_CHECKING:
    from pytest_llminfer.worker.backends.simulated.shape import Shape
    from pytest_llminfer.worker.backends.simulated.weights import Weights

_FLOAT = np.dtype(np.float32)


class Llama:
    """``weights`` by their names in a checkpoint; arrays of another float type are computed with in float32."""

    def __init__(self, shape: Shape, weights: Weights) -> None:
        self.shape, self.weights = shape, weights
        self.cache_dtype = _FLOAT
        half = np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim
        angles = np.arange(shape.max_position_embeddings + 1)[:, None] / shape.rope_theta**half
        self._cosines, self._sines = np.cos(angles).astype(_FLOAT), np.sin(angles).astype(_FLOAT)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(array.nbytes for array in self.weights.values())

    @property
    def buffers_bytes(self) -> int:
        """Bytes of the RoPE tables."""
        return self._cosines.nbytes + self._sines.nbytes

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for this model."""
        return KVCache(self.shape, rows, capacity, self.cache_dtype)

    def forward(self, tokens: np.ndarray, cache: KVCache, *, lengths: np.ndarray | None = None, shift: int = 0) -> np.ndarray:
        """Final hidden states (rows, tokens, hidden) of ``tokens`` (rows, tokens), which continue what ``cache`` holds.

        lengths: how many of each row's tokens are real, the rest being padding on the right; all, if None.
        shift: added to the positions (a fault; 0 is right).
        """
        count = tokens.shape[1]
        places = cache.lengths[:, None] + np.arange(count)
        positions = places + shift
        rotation = self._cosines[positions][:, None], self._sines[positions][:, None]
        end = int(cache.lengths.max()) + count
        # A token sees its own place and those before it; places that a shorter row has not filled lie behind it.
        bias = np.where(np.arange(end) <= places[:, :, None], _FLOAT.type(0), _FLOAT.type(-np.inf))[:, None, None]
        hidden = self.weights["model.embed_tokens.weight"][tokens].astype(_FLOAT, copy=False)
        for layer in range(self.shape.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            hidden = hidden + self._attention(layer, self._norm(hidden, f"{prefix}.input_layernorm.weight"), cache, rotation, bias)
            hidden = hidden + self._swiglu(prefix, self._norm(hidden, f"{prefix}.post_attention_layernorm.weight"))
        cache.lengths = cache.lengths + (count if lengths is None else lengths)
        return self._norm(hidden, "model.norm.weight")

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """(…, vocabulary) for final hidden states (…, hidden)."""
        head = "model.embed_tokens.weight" if self.shape.tie_word_embeddings else "lm_head.weight"
        return self._linear(hidden, head)

    def _attention(
        self, layer: int, hidden: np.ndarray, cache: KVCache, rotation: tuple[np.ndarray, np.ndarray], bias: np.ndarray
    ) -> np.ndarray:
        rows, count, _ = hidden.shape
        heads, kv_heads, width = self.shape.num_attention_heads, self.shape.num_key_value_heads, self.shape.head_dim
        prefix = f"model.layers.{layer}.self_attn"
        queries = _rotate(self._heads(hidden, f"{prefix}.q_proj.weight", heads), *rotation)
        new_keys = _rotate(self._heads(hidden, f"{prefix}.k_proj.weight", kv_heads), *rotation)
        keys, values = cache.append(layer, new_keys, self._heads(hidden, f"{prefix}.v_proj.weight", kv_heads))
        # Query heads of one group share their keys: (…, group x tokens, head_dim) against (…, places, head_dim).
        grouped = (queries * _FLOAT.type(width**-0.5)).reshape(rows, kv_heads, heads // kv_heads * count, width)
        scores = np.matmul(grouped, keys.astype(_FLOAT, copy=False).swapaxes(-1, -2))
        weights = _softmax(scores.reshape(rows, kv_heads, heads // kv_heads, count, -1) + bias)
        mixed = np.matmul(weights.reshape(*scores.shape), values.astype(_FLOAT, copy=False))
        merged = mixed.reshape(rows, heads, count, width).transpose(0, 2, 1, 3).reshape(rows, count, heads * width)
        return self._linear(merged, f"{prefix}.o_proj.weight")

    def _heads(self, hidden: np.ndarray, name: str, heads: int) -> np.ndarray:
        rows, count, _ = hidden.shape
        return self._linear(hidden, name).reshape(rows, count, heads, self.shape.head_dim).transpose(0, 2, 1, 3)

    def _swiglu(self, prefix: str, hidden: np.ndarray) -> np.ndarray:
        gate = self._linear(hidden, f"{prefix}.mlp.gate_proj.weight")
        with np.errstate(over="ignore"):  # exp may reach infinity, which rightly gives 0
            activated = gate / (1 + np.exp(-gate))
        inner = activated * self._linear(hidden, f"{prefix}.mlp.up_proj.weight")
        return self._linear(inner, f"{prefix}.mlp.down_proj.weight")

    def _norm(self, hidden: np.ndarray, name: str) -> np.ndarray:
        scale = 1 / np.sqrt(np.square(hidden).mean(axis=-1, keepdims=True) + _FLOAT.type(self.shape.rms_norm_eps))
        return np.asarray(hidden * scale * self.weights[name].astype(_FLOAT, copy=False))

    def _linear(self, inputs: np.ndarray, name: str) -> np.ndarray:
        weight = self.weights[name].astype(_FLOAT, copy=False)
        flat: np.ndarray = inputs.reshape(-1, inputs.shape[-1]) @ weight.T
        return flat.reshape(*inputs.shape[:-1], weight.shape[0])


def _rotate(states: np.ndarray, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
    """Rotary embedding of (rows, heads, tokens, head_dim): dimension i turns with i + head_dim / 2."""
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    return np.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def _softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(weights)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in nats over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    logprobs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logprobs
