from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_llminfer.families.quantization.casts import NAMED, check_casts, drawn
from pytest_llminfer.numerics.float_formats import FORMATS, FloatFormat
from pytest_llminfer.verdict import Outcome
from tests.support.present import present

NUMBERS = st.floats(width=32, allow_nan=False)


def same(found: float | None, expected: Any) -> Any:
    return found == expected and math.copysign(1, present(found)) == math.copysign(1, present(expected))


@given(NUMBERS)
@example(65519.99609375)
@example(65520.0)
@example(2.0**-25)
@example(-(2.0**-26))
def test_float16_is_numpys(number: float) -> None:
    """NumPy's own conversion, an independent implementation; 65520 is the least number that becomes infinite."""
    with np.errstate(over="ignore"):
        assert same(FORMATS["float16"].rounded(number), float(np.float32(number).astype(np.float16)))


@given(NUMBERS)
def test_bfloat16_is_the_upper_half_of_float32(number: float) -> None:
    """Round the 32 bits to their upper 16, ties to even: the definition of bfloat16."""
    bits = int.from_bytes(struct.pack("<f", number), "little")
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    if math.isinf(number):
        upper = bits >> 16
    (expected,) = struct.unpack("<f", ((upper & 0xFFFF) << 16).to_bytes(4, "little"))
    assert same(FORMATS["bfloat16"].rounded(number), expected)


@given(NUMBERS)
def test_float32_numbers_are_float32(number: float) -> None:
    assert same(FORMATS["float32"].rounded(number), number)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float16"])
@given(number=NUMBERS)
def test_rounding_is_to_the_nearest_of_all_numbers(name: str, number: float) -> None:
    """Against a list of every finite number of the format."""
    entry = FORMATS[name]
    found = entry.rounded(number)
    if found is None or math.isinf(found):
        assert abs(number) > entry.largest
        return
    grid = every(entry)
    at = np.searchsorted(grid, number)
    nearest = min(grid[max(at - 1, 0) : at + 1], key=lambda each: abs(each - number))
    assert abs(found - number) == abs(nearest - number)
    assert found in grid


def every(entry: FloatFormat) -> npt.NDArray[Any]:
    """Every finite number of a format, ascending."""
    numbers = {0.0}
    exponent = entry.smallest_exponent
    numbers |= {part * entry.smallest for part in range(2**entry.fraction_bits)}
    while math.ldexp(1, exponent) <= entry.largest:
        numbers |= {math.ldexp(1 + part * entry.epsilon, exponent) for part in range(2**entry.fraction_bits)}
        exponent += 1
    kept = [number for number in numbers if number <= entry.largest]
    return np.array(sorted({-number for number in kept} | set(kept)))


@pytest.mark.parametrize(
    ("name", "largest", "epsilon", "normal", "smallest"),
    [
        ("bfloat16", 3.3895313892515355e38, 2**-7, 1.1754943508222875e-38, 2**-133),
        ("float16", 65504, 2**-10, 6.103515625e-05, 5.960464477539063e-08),
        ("float8_e4m3fn", 448, 2**-3, 2**-6, 2**-9),
        ("float8_e5m2", 57344, 2**-2, 2**-14, 2**-16),
    ],
)
def test_limits_are_those_of_methods_7(name: str, largest: float, epsilon: float, normal: float, smallest: float) -> None:
    entry = FORMATS[name]
    assert (entry.largest, entry.epsilon, entry.smallest_normal, entry.smallest) == (largest, epsilon, normal, smallest)


def test_numbers_that_a_person_can_check() -> None:
    assert {number: {name: FORMATS[name].rounded(number) for name in found} for number, found in NAMED.items()} == NAMED


def rounded(numbers: npt.NDArray[Any], names: tuple[str, ...] = tuple(FORMATS)) -> dict[Any, Any]:
    """What a device that rounds as the formats say would give; 0 where nothing is defined."""
    return {
        name: np.array([0 if (value := FORMATS[name].rounded(number)) is None else value for number in numbers.tolist()])
        for name in names
    }


def test_casts_of_a_correct_device_pass_and_nothing_is_left_out() -> None:
    numbers = drawn(3_000, 1)
    assert np.isin(np.array([0.1234, 75535.0], np.float32), numbers).all()
    magnitudes = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)])
    assert magnitudes.min() < 1e-38
    assert magnitudes.max() > 1e38
    verdict = check_casts(numbers=numbers, found=rounded(numbers))
    assert verdict.outcome is Outcome.PASS
    assert present(verdict.measurements[0].n) > 4 * 3_000


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda name, _, cast: np.where(np.abs(cast) < FORMATS[name].smallest_normal, 0, cast), "became 0.0"),
        (lambda name, _, cast: np.where(np.isinf(cast), FORMATS[name].largest, cast), "not inf"),
        (lambda _, numbers, __: np.trunc(numbers / 2.0**-7) * 2.0**-7, "became"),
    ],
    ids=["flushes subnormals", "saturates", "truncates"],
)
def test_a_device_that_rounds_otherwise_fails(fault: Callable[..., Any], says: str) -> None:
    numbers = drawn(3_000, 1)
    with np.errstate(all="ignore"):
        wrong = {name: fault(name, numbers.astype(np.float64), values) for name, values in rounded(numbers, ("float16",)).items()}
    verdict = check_casts(numbers=numbers, found=wrong)
    assert verdict.outcome is Outcome.FAIL
    assert says in str(verdict)


def test_no_casts_fail() -> None:
    assert check_casts(numbers=np.zeros(0, np.float32), found={"float16": np.zeros(0)}).outcome is Outcome.FAIL
