"""The KV cache: the same tokens whichever way they were computed, the exact size, and contents that stay as they were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_llminfer.models.shape import item_bytes, torch_dtype
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from pytest_llminfer.observations.kv_cache import CacheLayer, CacheReport


def check_cache_shape(*, report: CacheReport, layers: int, kv_heads: int, head_dim: int, dtype: str, batch: int = 1) -> Verdict:
    """Whether keys and values have exactly the shape, dtype and bytes that the model's configuration implies.

    Shapes (batch, kv_heads, tokens, head_dim); bytes 2 x layers x kv_heads x head_dim x item x tokens x batch, after the
    prompt and after ``report.extended_tokens`` more. kv_heads: of the configuration, not the query heads. No sliding window.
    """
    item, dtype = item_bytes(dtype), torch_dtype(dtype)
    lines: list[str] = []
    stages = (
        ("after the prompt", report.layers, report.prompt_tokens),
        ("after decoding", report.extended_layers, report.prompt_tokens + report.extended_tokens),
    )
    for stage, found, tokens in stages:
        if len(found) != layers:
            lines.append(f"{stage}: {len(found)} layers, expected {layers}")
        shape = (batch, kv_heads, tokens, head_dim)
        for number, layer in enumerate(found):
            lines += (f"{stage}, layer {number}: {line}" for line in layer_differences(layer, shape, dtype, item))
    per_token = 2 * layers * kv_heads * head_dim * item * batch
    stored = [sum(layer.stored_bytes for layer in found) for _, found, _ in stages]
    if not report.prompt_tokens:
        lines.insert(0, "nothing was compared: the prompt has no tokens")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim="the KV cache has exactly the shape, dtype and bytes that the model's configuration implies",
        key=f"{per_token:,} B/token",
        measurements=(
            *(
                Measurement(f"cache {stage}", size, "bytes", tokens, f"expected {per_token * tokens:,}")
                for (stage, _, tokens), size in zip(stages, stored, strict=True)
            ),
            Measurement("layers", len(report.layers), "layers", len(report.layers), f"expected {layers}"),
        ),
        threshold=f"exactly ({batch}, {kv_heads}, tokens, {head_dim}) of {dtype} for keys and values in {layers} layers",
        threshold_source="the model's configuration",
        smallest_detectable="exact",
        advice="compare kv_heads and head_dim with config.json: query heads in the cache mean that grouped heads were expanded",
        details=first_offenders(lines),
    )


def layer_differences(layer: CacheLayer, shape: tuple[int, ...], dtype: str, item: int) -> list[str]:
    """What is wrong with a layer's keys and values; ``item``: bytes of one element."""
    lines = [
        f"{name} have shape {found}, expected {shape}"
        for name, found in (("keys", tuple(layer.key_shape)), ("values", tuple(layer.value_shape)))
        if found != shape
    ]
    if layer.dtype.removeprefix("torch.") != dtype:
        lines.append(f"dtype {layer.dtype}, expected {dtype}")
    expected = 2 * math.prod(shape) * item
    if layer.stored_bytes != expected:
        lines.append(f"{layer.stored_bytes:,} bytes, expected {expected:,}")
    return lines


def check_cache_prefix(*, report: CacheReport) -> Verdict:
    """Whether decoding left the cached prompt as it was: every key and value bit-equal in every layer.

    Keys that changed alone point at positions, keys and values together at slots or blocks (METHODS 3.2).
    """
    changed = {number: pair for number, pair in enumerate(report.prefix_differences) if pair != (0.0, 0.0)}
    lines = [
        f"layer {number}: keys differ by up to {pair[0]:.3g}, values by up to {pair[1]:.3g}" for number, pair in changed.items()
    ]
    incomparable = [number for number, pair in changed.items() if any(map(math.isnan, pair))]
    if incomparable:
        lines.insert(0, f"no position in common before and after decoding in layers {', '.join(map(str, incomparable))}")
    elif changed:
        keys_only = all(values == 0.0 for _, values in changed.values())
        lines.insert(0, f"{'only keys' if keys_only else 'values'} changed: {'positions' if keys_only else 'slots'} are wrong")
    if len(report.prefix_differences) != len(report.layers):
        lines.insert(0, f"{len(report.prefix_differences)} layers were compared of {len(report.layers)}")
    if not report.prefix_differences or not report.prompt_tokens or not report.extended_tokens:
        lines.insert(0, f"nothing was compared: {report.prompt_tokens} prompt tokens, {report.extended_tokens} decoded after them")
    largest = max((abs(value) for pair in report.prefix_differences for value in pair), default=0.0)
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"decoding {report.extended_tokens} tokens left the cached prompt bit-equal",
        key=f"{len(changed)} layers changed" if changed else f"{len(report.prefix_differences)} layers equal",
        measurements=(
            Measurement("layers that changed", len(changed), "layers", len(report.prefix_differences)),
            Measurement("largest difference", largest, "", report.prompt_tokens, "over all layers, keys and values"),
        ),
        threshold="difference 0 in every layer",
        threshold_source="decoding only appends to a cache",
        smallest_detectable="exact",
        advice="look at cache writes of the decode step: slot mapping, position ids, block table",
        details=first_offenders(lines),
    )
