"""The KV caches of transformers that a cache path goes through: made, copied into beams, cropped, and read back by column."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, QuantizedCache, StaticCache
from transformers.utils import is_optimum_quanto_available

from pytest_llminfer.errors import BadInputError, UnsupportedError
from pytest_llminfer.worker.backends.transformers.loading import SPEC_DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUP = 64
"""Values that share a scale in a quantized cache: the default of transformers, or what divides the values of a token."""


@dataclass(frozen=True, slots=True)
class Held:
    """What one layer of a cache holds of its n newest columns, in the model's dtype.

    Attributes:
        keys: (batch, kv_heads, n, head_dim).
        values: (batch, kv_heads, n, head_dim).
    """

    keys: torch.Tensor
    values: torch.Tensor


def make(config: Any, kind: str, *, columns: int = 0, bits: int = 4, residual: int = 128, spare: int = 0) -> Any:
    """An empty cache; None for ``none``. columns: how many a static one must hold, beside ``spare`` that stay empty.

    Raises:
        UnsupportedError: transformers has no such cache for this model, or the package that packs its bits is missing.
    """
    dynamic = DynamicCache(config=config)
    if any(dynamic.is_linear):
        raise UnsupportedError(
            f"layers of a {config.model_type} model keep a state in place of keys and values",
            "give a model whose layers keep keys and values",
        )
    if kind == "none":
        return None
    if kind == "dynamic":
        return dynamic
    if kind == "static":
        return StaticCache(config=config, max_cache_len=columns + spare)
    if kind == "fp8":
        with _refused():
            return QuantizedCache("fp8", config=config)
    if kind != "quantized":
        raise BadInputError(f"unknown cache {kind!r}; valid: none, dynamic, static, quantized, fp8")
    if not is_optimum_quanto_available():
        raise UnsupportedError(
            "a quantized KV cache needs optimum-quanto", f"install it: {sys.executable} -m pip install optimum-quanto"
        )
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    with _refused():
        return QuantizedCache(
            "quanto", config=config, nbits=bits, residual_length=residual, q_group_size=math.gcd(_GROUP, heads * head_dim)
        )


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"transformers refuses this way through the cache: {error}",
            "use cache=dynamic or cache=static, or another version of transformers",
        ) from error


def windows(cache: Any) -> list[int]:
    """Per layer its window in tokens, 0 where it keeps everything. A static layer knows it as the slots that it has."""
    return [_window(layer) for layer in layers(cache)]


def _window(layer: Any) -> int:
    if not getattr(layer, "is_sliding", False):
        return 0
    return int(getattr(layer, "sliding_window", 0) or layer.max_cache_len)


def layers(cache: Any) -> list[Any]:
    """The layers that hold keys and values of their own."""
    return [layer for layer in cache.layers if hasattr(layer, "keys")]


def can_branch(cache: Any) -> bool:
    """Whether rows can be copied inside of the cache; otherwise they are there from its beginning, as ``generate`` does it."""
    return all(hasattr(layer, "batch_repeat_interleave") and not hasattr(layer, "_quantize") for layer in cache.layers)


def check_croppable(cache: Any) -> None:
    """Refuse a cache that transformers cannot shorten; an inherited ``crop`` of a quantized one would cut its residual alone.

    Raises:
        UnsupportedError: a layer of another kind.
    """
    for layer in cache.layers:
        if not getattr(layer, "is_croppable", False) or hasattr(layer, "_quantize"):
            raise UnsupportedError(f"transformers cannot crop {type(layer).__name__}", "use cache=dynamic")


def crop(cache: Any, count: int) -> None:
    """Take the newest ``count`` columns away; ``remember`` came before they were added."""
    with _refused():
        cache.crop(-count)


def duplicate(cache: Any) -> Any:
    """An independent copy, as a prompt's cache is copied for each of its continuations."""
    with _refused():
        return copy.deepcopy(cache)


def remember(cache: Any) -> None:
    """Let layers with a window keep what a crop will bring back into it."""
    cache.activate_past_recording()


def read(cache: Any, columns: int) -> list[Held]:
    """What each layer holds after ``columns`` columns, quantized tensors as they are read back."""
    found = []
    for layer in layers(cache):
        keys, values = _tensors(layer)
        count = min(columns, keys.shape[-2])
        newest = slice(0, count) if hasattr(layer, "max_cache_len") else slice(keys.shape[-2] - count, None)
        found.append(Held(keys[..., newest, :], values[..., newest, :]))
    return found


def _tensors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if not hasattr(layer, "_quantize"):
        return layer.keys, layer.values
    keys, values = layer._dequantize(layer._quantized_keys), layer._dequantize(layer._quantized_values)  # noqa: SLF001
    if hasattr(layer, "_apply_pending_reorder"):
        keys, values = layer._apply_pending_reorder(keys, values)  # noqa: SLF001
    if layer.keys.numel():
        keys, values = torch.cat([keys, layer.keys], dim=-2), torch.cat([values, layer.values], dim=-2)
    return keys, values


def dtype_of(cache: Any) -> str:
    """What the first layer stores, in the words of a cell."""
    return _dtype(layers(cache)[0])


def _dtype(layer: Any) -> str:
    if hasattr(layer, "nbits"):
        return f"int{layer.nbits}"
    if hasattr(layer, "fp8_dtype"):
        return "fp8"
    return SPEC_DTYPES.get(layer.keys.dtype, str(layer.keys.dtype).removeprefix("torch."))


def report(cache: Any) -> dict[str, Any]:
    """The fields of ``CachedTensors``."""
    found = layers(cache)
    pairs = [_tensors(layer) for layer in found]
    return {
        "key_shapes": [list(keys.shape) for keys, _ in pairs],
        "value_shapes": [list(values.shape) for _, values in pairs],
        "dtypes": [_dtype(layer) for layer in found],
        "stored_bytes": [_stored(layer) for layer in found],
        "sliding": windows(cache),
        "scales": [_scales(layer) for layer in found],
        "largest": [[float(tensor.abs().amax()) for tensor in pair] for pair in pairs],
        "residual": [int(layer.keys.shape[-2]) if hasattr(layer, "nbits") and layer.keys.numel() else 0 for layer in found],
    }


def _scales(layer: Any) -> list[float]:
    """Of keys and values, of a layer that has one for each of its tensors."""
    if not hasattr(layer, "fp8_dtype"):
        return []
    return [float(layer._quantized_keys[1]), float(layer._quantized_values[1])]  # noqa: SLF001


def _stored(layer: Any) -> int:
    own = [layer.keys, layer.values]
    packed = [layer._quantized_keys, layer._quantized_values] if hasattr(layer, "_quantize") else []  # noqa: SLF001
    return sum(_bytes(tensor) for tensor in (*own, *packed))


def _bytes(stored: Any) -> int:
    """Of a tensor, or of those that one is made of."""
    if isinstance(stored, tuple):
        return sum(_bytes(part) for part in stored)
    if hasattr(stored, "__tensor_flatten__"):
        names, _ = stored.__tensor_flatten__()
        return sum(_bytes(getattr(stored, name)) for name in names)
    return int(stored.nbytes)
