"""Floating-point formats as exact arithmetic: what they make of a number (docs/methods.md#float-formats). Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """A binary floating-point format with one sign bit.

    Attributes:
        name: In torch's words.
        fraction_bits: Stored bits of the significand.
        smallest_exponent: Exponent of the least normal number, which is 2 to this power.
        largest: The greatest finite number.
        has_infinity: Whether there is an infinity beyond it; without one the format does not define what becomes of greater
            numbers.
    """

    name: str
    fraction_bits: int
    smallest_exponent: int
    largest: float
    has_infinity: bool

    @property
    def epsilon(self) -> float:
        """The distance from 1 to the next number."""
        return 2.0**-self.fraction_bits

    @property
    def smallest_normal(self) -> float:
        """The least positive number with a full significand."""
        return math.ldexp(1.0, self.smallest_exponent)

    @property
    def smallest(self) -> float:
        """The least positive number."""
        return math.ldexp(1.0, self.smallest_exponent - self.fraction_bits)

    def rounded(self, value: float) -> float | None:
        """The nearest number of the format, ties to even (IEEE 754-2019, 4.3.1); None where the format does not define one."""
        if math.isnan(value):
            return math.nan
        if math.isinf(value):
            return value if self.has_infinity else None
        exponent = max(math.frexp(value)[1] - 1, self.smallest_exponent)
        # Exact: scaling by a power of two loses nothing here, and Python rounds a half to the even neighbour.
        step = exponent - self.fraction_bits
        nearest = math.ldexp(round(math.ldexp(value, -step)), step)
        if abs(nearest) > self.largest:
            return math.copysign(math.inf, value) if self.has_infinity else None
        return math.copysign(nearest, value)


FORMATS = {
    entry.name: entry
    for entry in (
        FloatFormat("float32", 23, -126, (2 - 2.0**-23) * 2.0**127, has_infinity=True),
        FloatFormat("bfloat16", 7, -126, (2 - 2.0**-7) * 2.0**127, has_infinity=True),
        FloatFormat("float16", 10, -14, 65504.0, has_infinity=True),
        FloatFormat("float8_e4m3fn", 3, -6, 448.0, has_infinity=False),
        FloatFormat("float8_e5m2", 2, -14, 57344.0, has_infinity=True),
    )
}
"""By torch's names. float8_e4m3fn has no infinity (Micikevicius et al., arXiv 2209.05433, table 1)."""
