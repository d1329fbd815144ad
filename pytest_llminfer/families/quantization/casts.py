"""Casts between floating-point formats, against the arithmetic of the formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_llminfer.numerics.float_formats import FORMATS
from pytest_llminfer.verdict import Measurement, Outcome, Verdict, first_offenders

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMED = {0.1234: {"bfloat16": 0.12353515625, "float16": 0.1234130859375}, 75535.0: {"bfloat16": 75776.0, "float16": float("inf")}}
"""What a person can check by hand (METHODS 7): half the precision of bf16 at 0.1234, and a number beyond fp16's range."""


def drawn(count: int, seed: int) -> np.ndarray:
    """float32 (count,): the named numbers, the edges of every format, and bit patterns of all magnitudes, also subnormal."""
    edges = [
        sign * value * factor
        for entry in FORMATS.values()
        for value in (entry.largest, entry.smallest, entry.smallest_normal, 1.0, 1 + entry.epsilon / 2)
        for factor in (1.0, 1 + 2.0**-20, 1 - 2.0**-20, 0.5)
        for sign in (1.0, -1.0)
    ]
    patterns = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        known = np.array([*NAMED, 0.0, -0.0, np.inf, -np.inf, np.nan, *edges], np.float64).astype(np.float32)
    return np.concatenate([known, patterns])[:count]


def check_casts(*, numbers: np.ndarray, found: Mapping[str, np.ndarray]) -> Verdict:
    """Whether a device rounds to every format as IEEE 754 says: to the nearest number, ties to even, infinity beyond the largest.

    numbers (n,) float32; found: by format, what each became, as float32. Numbers for which a format defines nothing are left out.
    """
    lines: list[str] = []
    compared = 0
    for name, values in found.items():
        entry = FORMATS[name]
        for number, value in zip(numbers.tolist(), values.tolist(), strict=True):
            expected = entry.rounded(number)
            if expected is None:
                continue
            compared += 1
            if value != expected and not (np.isnan(value) and np.isnan(expected)):
                lines.append(f"{number!r} became {value!r} in {name}, not {expected!r}")
    if not compared:
        lines = ["nothing was compared"]
    return Verdict(
        outcome=Outcome.FAIL if lines else Outcome.PASS,
        claim=f"numbers of all magnitudes become what {', '.join(found)} define",
        key=f"{compared:,} casts",
        measurements=(Measurement("casts that differ", len(lines), "casts", compared),),
        threshold="every one equal",
        threshold_source="IEEE 754-2019 4.3.1; arXiv 2209.05433 for 8 bits",
        smallest_detectable="exact",
        advice="a device that flushes subnormal numbers to zero, or saturates instead of overflowing, changes what weights mean",
        details=first_offenders(lines),
    )
