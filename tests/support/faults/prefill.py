"""Faults of prefill that a live transformers model is given in its worker, each with the way back."""

from __future__ import annotations

from typing import Any


def shift_positions(model: Any) -> None:
    """From position 100 on, every token is rotated by one position too many."""
    rotary = model.model.rotary_emb
    forward = rotary.forward
    rotary.forward = lambda hidden, position_ids: forward(hidden, position_ids + (position_ids >= 100))


def unshift_positions(model: Any) -> None:
    del model.model.rotary_emb.forward


def round_weights(model: Any, bits: int) -> None:
    """Every linear of every layer to the nearest of 2^bits - 1 levels a group of 64, absolute maximum to absolute maximum."""
    model.exact = {}
    for name, weight in model.model.layers.named_parameters():
        if weight.dim() == 2:
            model.exact[name] = weight.data.clone()
            groups = weight.data.float().reshape(-1, 64)
            step = groups.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            weight.data.copy_(((groups / step).round() * step).reshape(weight.shape))


def restore_weights(model: Any) -> None:
    for name, weight in model.model.layers.named_parameters():
        if name in model.exact:
            weight.data.copy_(model.exact[name])
