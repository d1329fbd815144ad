"""Faults of the KV cache that are injected into a worker of transformers, and ``undo``, the way back from all of them.

Each takes the live model, as every probe does, but patches classes and functions of transformers: it acts on every model of the
worker, those that are made for a configuration included, whatever their architecture. Each spares plain prefill (one pass over an
empty dynamic cache without pads), which is the reference that the candidate is held against.
"""

# ruff: noqa: ARG001, ARG005 - a probe is given the live model, and a patch what it replaces is given

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, cache_utils, masking_utils
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, Fp8QuantizedLayer, StaticSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sliding_window_causal_mask_function

BLOCK = 16


def patch(owner: Any, name: str, make: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``make(what it was)``; ``undo`` knows of it."""
    own, original = name in vars(owner), getattr(owner, name, None)
    setattr(owner, name, functools.wraps(original)(make(original)) if callable(original) else make(original))
    vars(cache_utils).setdefault("patched_by_faults", []).append((owner, name, original if own else None))


def undo(model: Any) -> None:
    """Take back every fault that is injected, the last one first."""
    for owner, name, original in reversed(vars(cache_utils).pop("patched_by_faults", [])):
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def on_update(change: Callable[..., Any]) -> None:
    """Let ``change(layer, number, keys, values, sound)`` answer in place of ``sound(keys, values)``, what ``Cache.update`` does,

    wherever the cache holds something already.
    """

    def make(update: Any) -> Callable[..., Any]:
        def patched(self: Any, key_states: Any, value_states: Any, layer_idx: Any, *args: Any, **kwargs: Any) -> Any:
            past = int(self.get_seq_length(layer_idx)) if layer_idx < len(self.layers) else 0

            def sound(keys: Any, values: Any) -> Any:
                return update(self, keys, values, layer_idx, *args, **kwargs)

            if not past:
                return sound(key_states, value_states)
            return change(self.layers[layer_idx], layer_idx, key_states, value_states, sound)

        return patched

    patch(Cache, "update", make)


def wrong_block(model: Any, layer: int = 1) -> None:
    """Tokens 16 to 31 of the oldest that ``layer`` keeps become tokens 0 to 15, keys and values: a block table with a wrong entry.

    Happens once a cache, as soon as a pass goes on from something and the layer keeps 32 tokens: of a shorter sequence, and in a
    layer with a window of 32 tokens or less, never. What a quantized cache gives back is changed at every pass.
    """

    def change(at: Any, number: Any, keys: Any, values: Any, update: Callable[..., Any]) -> Any:
        found = update(keys, values)
        if number != layer:
            return found
        packed = hasattr(at, "_quantize")
        for tensor in found if packed else (at.keys, at.values):
            if tensor.shape[-2] >= 2 * BLOCK and not getattr(at, "has_wrong_block", False):
                tensor[..., BLOCK : 2 * BLOCK, :] = tensor[..., :BLOCK, :].clone()
        if not packed and at.get_seq_length() >= 2 * BLOCK and at.keys.shape[-2] >= 2 * BLOCK:
            at.has_wrong_block = True
        return found

    on_update(change)


def swapped_heads(model: Any, layer: int = 0) -> None:
    """In passes that go on from something, ``layer`` stores the keys of head 0 as those of head 1 and the other way round.

    Values stay where they belong. Needs two KV heads.
    """

    def change(at: Any, number: Any, keys: Any, values: Any, update: Callable[..., Any]) -> Any:
        if number == layer:
            order = torch.arange(keys.shape[1])
            order[:2] = torch.tensor([1, 0])
            keys = keys[:, order]
        return update(keys, values)

    on_update(change)


def exchanged(model: Any, layer: int = 1) -> None:
    """In passes that go on from something, ``layer`` stores keys as values and values as keys."""

    def change(at: Any, number: Any, keys: Any, values: Any, update: Callable[..., Any]) -> Any:
        return update(values, keys) if number == layer else update(keys, values)

    on_update(change)


def unscaled_fp8(model: Any) -> None:
    """The scales of an fp8 cache are 1.0; every other cache stores what comes after its first pass in e4m3 with a scale of 1.0.

    Of values between 2^-6 and 448, e4m3 with a scale of 1.0 is as good as with any: of an fp8 cache with such values the
    distributions show nothing, and the scales must be looked at. In a cache that claims 16 or 32 bits it shows everywhere.
    """

    def quantize(original: Any) -> Callable[..., Any]:
        def patched(self: Any, tensor: Any, scale: None = None) -> Any:
            return _to_e4m3(tensor), torch.tensor(1.0)

        return patched

    def change(at: Any, number: Any, keys: Any, values: Any, update: Callable[..., Any]) -> Any:
        if hasattr(at, "_quantize"):
            return update(keys, values)
        return update(_to_e4m3(keys).to(keys.dtype), _to_e4m3(values).to(values.dtype))

    patch(Fp8QuantizedLayer, "_quantize", quantize)
    on_update(change)


def _to_e4m3(tensor: Any) -> Any:
    return tensor.float().clamp(-448, 448).to(torch.float8_e4m3fn)


def on_call(change: Callable[..., Any]) -> None:
    """Let ``change(model, cache, arguments)`` look at the keyword arguments of every call of a whole model, outermost only."""

    def make(call: Any) -> Callable[..., Any]:
        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            cache = kwargs.get("past_key_values")
            if cache is None or vars(cache).get("inside"):
                return call(self, *args, **kwargs)
            cache.inside = True
            try:
                return call(self, *args, **change(self, cache, kwargs))
            finally:
                cache.inside = False

        return patched

    patch(PreTrainedModel, "__call__", make)


def shifted_after_crop(model: Any) -> None:
    """Once a cache was cropped, every token that is added gets a position that is one too high, the mask staying as it was.

    Acts on ``crop`` and, as the cache of a shared prefix is cropped to it, on ``prefix`` of a dynamic cache.
    """

    def crop(original: Any) -> Callable[..., None]:
        def patched(self: Any, tokens_to_remove: Any) -> None:
            original(self, tokens_to_remove)
            self.was_cropped = vars(self).get("was_cropped", False) or tokens_to_remove != 0

        return patched

    def change(called: Any, cache: Any, kwargs: dict[str, Any]) -> Any:
        if not vars(cache).get("was_cropped"):
            return kwargs
        positions = kwargs.get("position_ids")
        if positions is None:
            ids = kwargs["input_ids"]
            positions = torch.arange(ids.shape[1], device=ids.device)[None] + int(cache.get_seq_length())
        return {**kwargs, "position_ids": positions + 1}

    patch(Cache, "crop", crop)
    on_call(change)


def stale_prefix(model: Any) -> None:
    """A copied cache is that of a prefix with one other token, the last but one: a cached prefix was found for a flipped token.

    Acts on ``prefix``, from its end on: what was computed for the prefix itself is right.
    """

    def change(called: Any, cache: Any, kwargs: dict[str, Any]) -> Any:
        cache.steps = [*vars(cache).get("steps", []), (called, kwargs)]
        return kwargs

    def crop(original: Any) -> Callable[..., None]:
        def patched(self: Any, tokens_to_remove: Any) -> None:
            original(self, tokens_to_remove)
            self.steps = [*vars(self).get("steps", []), (None, tokens_to_remove)]

        return patched

    def copied(self: Any, memo: Any) -> Any:
        steps, flipped = vars(self).pop("steps", []), max(int(self.get_seq_length()) - 2, 0)
        stale = vars(copy)["_reconstruct"](self, memo, *self.__reduce_ex__(4))
        stale.reset()
        start = 0
        for called, given in steps:
            if called is None:
                stale.crop(given)
                continue
            ids = given["input_ids"].clone()
            if start <= flipped < start + ids.shape[1]:
                ids[:, flipped - start] = (ids[:, flipped - start] + 1) % called.config.get_text_config().vocab_size
            start += ids.shape[1]
            called(**{**given, "input_ids": ids, "past_key_values": stale})
        return stale

    on_call(change)
    patch(Cache, "crop", crop)
    patch(Cache, "__deepcopy__", lambda _: copied)


def long_window(model: Any) -> None:
    """Layers with a window keep one token more than they should, and passes that go on from something see one more.

    Acts once a sequence is longer than the window. Prefill sees what it should; its layers keep the additional token too.
    """

    def longer(original: Any) -> Callable[..., None]:
        def patched(self: Any, *args: Any, sliding_window: Any, **kwargs: Any) -> None:
            original(self, *args, sliding_window=sliding_window + 1, **kwargs)

        return patched

    def mask(original: Any) -> Callable[..., Any]:
        def patched(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("local_size") and int(kwargs["q_offset"]) > 0:
                size = kwargs["local_size"] + 1
                kwargs |= {"local_size": size, "mask_function": sliding_window_causal_mask_function(size)}
            return original(*args, **kwargs)

        return patched

    patch(DynamicSlidingWindowLayer, "__init__", longer)
    patch(StaticSlidingWindowLayer, "__init__", longer)
    masks = ALL_MASK_ATTENTION_FUNCTIONS
    patched = {name: mask(masks[name]) for name in ("sdpa", "eager")}
    patch(type(masks), "_global_mapping", lambda mapping: {**mapping, **patched})


def unmasked_pads(model: Any) -> None:
    """Pads are attended to like tokens; positions stay right. Acts on every pass whose mask has pads, on either side."""
    patch(masking_utils, "prepare_padding_mask", lambda _: lambda attention_mask, kv_length, kv_offset: None)
