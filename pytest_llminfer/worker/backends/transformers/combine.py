"""One answer for the whole model, made of what each rank says of its part."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    Message = dict[str, Any]


def memory(answers: Sequence[Message]) -> Message:
    """Every figure that of the rank with the most."""
    first = answers[0]
    return {name: value if isinstance(value, str) else max(entry[name] for entry in answers) for name, value in first.items()}


def kv_cache(answers: Sequence[Message], kv_heads: int) -> Message:
    """Heads and bytes added up where each rank holds some of the ``kv_heads``; the largest difference that any rank saw."""
    first = answers[0]
    return {
        **first,
        **{
            name: [_layer(parts, kv_heads) for parts in zip(*(answer[name] for answer in answers), strict=True)]
            for name in ("layers", "extended_layers")
        },
        "prefix_differences": [
            [_largest(values) for values in zip(*parts, strict=True)]
            for parts in zip(*(answer["prefix_differences"] for answer in answers), strict=True)
        ],
    }


def _layer(parts: Sequence[Message], kv_heads: int) -> Message:
    first = parts[0]
    if first["key_shape"][1] == kv_heads:
        return first
    shapes = {}
    for name in ("key_shape", "value_shape"):
        batch, _, *rest = first[name]
        shapes[name] = [batch, sum(part[name][1] for part in parts), *rest]
    return {**first, **shapes, "stored_bytes": sum(part["stored_bytes"] for part in parts)}


def _largest(values: Sequence[float]) -> float:
    """NaN says that nothing was compared, which no other rank's comparison makes good."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)
