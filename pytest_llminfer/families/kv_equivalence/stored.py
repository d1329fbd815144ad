"""What a cache stores: its exact shape and bytes, and of a quantized one an error that is neither too large nor too small."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.families.kv_cache.check import layer_differences
from pytest_llminfer.families.kv_equivalence.check import Compared, parted_at
from pytest_llminfer.families.kv_equivalence.diagnosis import ADVICE, KL_LIMIT, Diagnosis, Kind, diagnose
from pytest_llminfer.models.shape import item_bytes, torch_dtype
from pytest_llminfer.observations.kv_cache import CacheLayer
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_llminfer.models.cut import CacheSizes
    from pytest_llminfer.observations.cache_paths import CachedTensors, RouteComparison

_IN_ANOTHER_PLACE = (Kind.HEADS, Kind.BLOCK, Kind.SLOT)
"""What can be told of a cache that is off by more than rounding: whose keys or values it has instead."""
LOW, HIGH = 0.5, 1.5
"""Of theory (METHODS 3.3)."""
DEEPER = 4.0
"""Of theory times sqrt(layer + 1): what the layers before lost adds to a layer's own error. Without a fault it is 1.2 at most in
200 drawn configurations (``tools/kv_fault_table.py --clean 200``)."""
OF_DEEPER = "of theory x sqrt(layer + 1)"
E4M3_ERROR, E4M3_LARGEST = 0.0245, 448.0
"""Root mean square of what rounding to three bits leaves, over that of numbers whose logarithms are spread evenly."""
SCALE_TOLERANCE = 0.01
"""What rounding a largest value to 8 bits could not explain is twice as much; a scale is measured in fp32."""
GROUP = 64
"""Values that share a scale in transformers' integer caches, or what divides those of a token."""


def check_quantized_cache(*, compared: Sequence[Compared], sizes: CacheSizes, claim: str) -> Verdict:
    """Whether a quantized cache errs as its format does: between 0.5 and 1.5 times theory, in keys and in values.

    Less means that it was not quantized. Judged in layer 0 over the tokens that are packed; theory is of normal numbers:
    ``format_error``. Deeper layers, which see what those before them lost, have an upper limit alone: ``DEEPER``. The scale of a
    whole tensor must be that of its largest value. The first pass, which sees what it computed itself, must be exact.
    """
    lines: list[str] = []
    kinds: list[Kind] = []
    ratios = []
    for entry in compared:
        cache = entry.found.cache
        if cache is None:
            continue
        lines += _scale_lines(entry)
        first = entry.route.prefix or (entry.route.chunks[0] if entry.route.chunks else None)
        for number, one in enumerate(entry.found.sequences):
            packed = one.kl.size - (max(cache.residual) if cache.residual else 0)
            expected = format_error(cache.dtypes[0], sizes)
            if packed < 1:
                lines.append(f"{entry}: nothing is packed, {one.kl.size} tokens are still to be")
            for name, errors in (("keys", one.key_error), ("values", one.value_error)) if packed > 0 else ():
                size = float(np.sqrt(np.nanmean(errors[0][:, :packed] ** 2)))
                ratios.append(size / expected)
                if not LOW <= ratios[-1] <= HIGH:
                    misplaced = _misplaced(one, number, entry, HIGH * expected) if ratios[-1] > HIGH else None
                    what = "the cache has other scales, groups or bits" if ratios[-1] > HIGH else "the cache was not quantized"
                    kinds += [misplaced.kind] if misplaced else []
                    told = f"{name} of {cache.dtypes[0]} err by {size:.3g}, theory {expected:.3g}: {misplaced or what}"
                    lines.append(f"{entry}: {told}")
            if one.kl[:first].max() > KL_LIMIT:
                lines.append(f"{entry}: the first pass differs by {one.kl[:first].max():.2g} nats, and sees no quantized tokens")
    deeper, found = _deeper(compared, sizes)
    if not lines:
        # What is wrong with a scale or in the first layer shows in all that follow.
        kinds, lines = [kind for kind, _ in found], [line for _, line in found]
    if not ratios:
        lines.insert(0, "nothing was compared")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=str(kinds[0] if kinds else Kind.SCALE)
        if lines and ratios
        else f"{min(ratios, default=0):.2f} to {max(ratios, default=0):.2f} of theory",
        measurements=(
            Measurement("smallest error", min(ratios, default=0.0), "of theory", len(ratios)),
            Measurement("largest error", max(ratios, default=0.0), "of theory", len(ratios)),
            Measurement("largest error of a deeper layer", max(deeper, default=0.0), OF_DEEPER, len(deeper)),
        ),
        threshold=f"{LOW} to {HIGH} of the format's error, in layer l > 0 at most {DEEPER:g} x sqrt(l + 1) of it; a scale of a "
        "whole tensor within 1 % of its largest value's",
        threshold_source="METHODS 3.3",
        smallest_detectable="half as much error, or one and a half times: a bit more or less doubles or halves it",
        advice=ADVICE[kinds[0]]
        if kinds
        else "too small: look at whether the cache is quantized at all; too large: at scales and group size",
        details=first_offenders(lines),
    )


def _deeper(compared: Sequence[Compared], sizes: CacheSizes) -> tuple[list[float], list[tuple[Kind, str]]]:
    """The errors of layers after the first, of theory times sqrt(layer + 1), and what exceeds ``DEEPER``."""
    ratios, found = [], []
    for entry in compared:
        cache = entry.found.cache
        if cache is None:
            continue
        for number, one in enumerate(entry.found.sequences):
            packed = max(one.kl.size - (max(cache.residual) if cache.residual else 0), 0)
            for name, errors in (("keys", one.key_error), ("values", one.value_error)) if packed else ():
                for layer in range(1, len(errors)):
                    lost = float(np.sqrt(np.nanmean(errors[layer][:, :packed] ** 2)))
                    explained = format_error(cache.dtypes[layer], sizes) * math.sqrt(layer + 1)
                    ratios.append(lost / explained)
                    if ratios[-1] > DEEPER:
                        misplaced = _misplaced(one, number, entry, DEEPER * explained)
                        told = (
                            f"layer {layer}, {name} of {cache.dtypes[layer]} err by {lost:.3g}, at most {DEEPER * explained:.3g} is"
                        )
                        why = f"what it and the layers before it lose: {misplaced or 'something else is wrong'}"
                        found.append((misplaced.kind if misplaced else Kind.ATTENTION, f"{entry}, {told} {why}"))
    return ratios, found


def format_error(dtype: str, sizes: CacheSizes) -> float:
    """The error of normal numbers relative to their size, root mean square, in ``fp8`` (e4m3) or ``intN``.

    Integers: steps of the range of a group over 2^N - 1, errors spread evenly within a step. The range of n normal numbers is
    that of their order statistics (Tippett 1925).
    """
    if dtype == "fp8":
        return E4M3_ERROR
    levels = 2 ** int(dtype.removeprefix("int")) - 1
    spread: float = normal_range(math.gcd(GROUP, sizes.kv_heads * sizes.head_dim)) / levels
    return spread / math.sqrt(12)


def normal_range(count: int) -> float:
    """Expected range of ``count`` standard normal numbers: the integral of 1 - Phi^n - (1 - Phi)^n (Tippett 1925)."""
    step = 1e-3
    below = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in np.arange(-8, 8, step)])
    return float((1 - below**count - (1 - below) ** count).sum() * step)


def _misplaced(one: RouteComparison, number: int, entry: Compared, limit: float) -> Diagnosis | None:
    keys, values = one.key_error > limit, one.value_error > limit
    found = diagnose(parted_at(one, number, entry, None, keys=keys, values=values, quiet=True))
    return found if found and found.kind in _IN_ANOTHER_PLACE else None


def _scale_lines(entry: Compared) -> Iterator[str]:
    cache = entry.found.cache
    if cache is None:
        return
    for layer, (scales, largest) in enumerate(zip(cache.scales, cache.largest, strict=False)):
        for name, scale, size in zip(("keys", "values"), scales, largest, strict=False):
            if abs(size / scale / E4M3_LARGEST - 1) > SCALE_TOLERANCE:
                yield (
                    f"cache scale: in layer {layer}, {name} up to {size:.3g} have the scale {scale:.3g}, "
                    f"measured it would be {size / E4M3_LARGEST:.3g}"
                )


def check_cached_tensors(*, compared: Sequence[Compared], sizes: CacheSizes, dtype: str, claim: str) -> Verdict:
    """Whether caches have exactly the shapes, dtype and bytes of what went through them.

    Per layer (rows, kv_heads, length, head_dim) and 2 x kv_heads x head_dim x bytes x length x rows bytes. Length: every column,
    of a window W the last W - 1 (dynamic) or W (static, METHODS 3.3); a static cache has its spare slots beside. Of quantized
    caches the bytes are those of their codes, scales and offsets. dtype: of the model.
    """
    lines: list[str] = []
    windowed: list[bool] = []
    stored = 0
    seen = [(entry, entry.found.cache) for entry in compared if entry.found.cache is not None]
    for entry, cache in seen:
        stored += sum(cache.stored_bytes)
        if len(cache.key_shapes) != len(sizes.windows):
            lines.append(f"{entry}: {len(cache.key_shapes)} layers, expected {len(sizes.windows)}")
            continue
        for number, window in enumerate(sizes.windows):
            length = kept(entry, window)
            shape = (entry.route.batch * entry.route.beams, sizes.kv_heads, length, sizes.head_dim)
            wrong = [f"{entry}, layer {number}: {line}" for line in _differences(cache, number, shape, dtype, sizes)]
            lines += wrong
            windowed += [bool(window) and cache.key_shapes[number][:2] == shape[:2]] if wrong else []
    if not seen:
        lines.insert(0, "nothing was compared")
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=claim,
        key=str(Kind.WINDOW) if windowed and all(windowed) else f"{len(seen)} caches",
        measurements=(
            Measurement("caches", len(seen), "caches"),
            Measurement("bytes of their keys and values", stored, "bytes"),
        ),
        threshold=f"exactly (rows, {sizes.kv_heads}, length, {sizes.head_dim}) in {len(sizes.windows)} layers, and their bytes",
        threshold_source="the model's configuration",
        smallest_detectable="exact",
        advice="a token too many in a layer with a window is a window bug; query heads in the place of KV heads were expanded",
        details=first_offenders(lines),
    )


def kept(entry: Compared, window: int) -> int:
    """Columns that a layer has at the end. window: 0 for none."""
    if entry.route.cache == "static":
        return min(entry.slots, window or entry.slots)
    return min(entry.columns, window - 1) if window else entry.columns


def _differences(cache: CachedTensors, number: int, shape: tuple[int, ...], dtype: str, sizes: CacheSizes) -> list[str]:
    found = cache.dtypes[number]
    keys, values = cache.key_shapes[number], cache.value_shapes[number]
    if found == dtype:
        layer = CacheLayer(keys, values, torch_dtype(found), cache.stored_bytes[number])
        return layer_differences(layer, shape, torch_dtype(dtype), item_bytes(dtype))
    lines = [f"{name} have shape {has}, expected {shape}" for name, has in (("keys", keys), ("values", values)) if has != shape]
    residual = cache.residual[number] if cache.residual else 0
    expected = quantized_bytes(found, shape, residual, item_bytes(dtype), sizes)
    if cache.stored_bytes[number] != expected:
        lines.append(f"{cache.stored_bytes[number]:,} bytes of {found}, expected {expected:,}")
    return lines


def quantized_bytes(found: str, shape: tuple[int, ...], residual: int, item: int, sizes: CacheSizes) -> int:
    """Of keys and values of one layer: ``fp8`` with a float32 scale a tensor, ``intN`` with a scale and an offset a group."""
    rows, heads, length, dim = shape
    if found == "fp8":
        return 2 * (math.prod(shape) + 4)
    packed = rows * heads * (length - residual) * dim
    group = math.gcd(GROUP, sizes.kv_heads * sizes.head_dim)
    bits = int(found.removeprefix("int")) if found.startswith("int") else 8 * item
    # The codes of several groups share a byte: their number is rounded up to a whole one.
    codes = math.ceil(packed // group * bits / 8) * group
    return 2 * (codes + 2 * (packed // group) * item + rows * heads * residual * dim * item)
