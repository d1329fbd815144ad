from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pytest_llminfer.errors import UnsupportedError
from pytest_llminfer.families.quantization.check import (
    check_against_best,
    check_codebook,
    check_double_quantization,
    check_loss_of_weights,
    check_near_normal,
    check_round_trip,
)
from pytest_llminfer.stats import codebooks
from pytest_llminfer.verdict import Outcome, Verdict

PASS, FAIL, INCONCLUSIVE = Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE
NORMAL = np.random.default_rng(3).standard_normal((128, 4096))
PUBLISHED_NF4 = (
    -1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1,
)  # fmt: skip


def stored(values: npt.NDArray[Any], codes: npt.NDArray[Any], block: int) -> Any:
    """What comes back of ``values``: the nearest code times its block's largest magnitude."""
    runs, largest = codebooks.scaled(values, block)
    upper = np.searchsorted(codes, runs).clip(1, len(codes) - 1)
    nearest = np.where(runs - codes[upper - 1] < codes[upper] - runs, codes[upper - 1], codes[upper])
    return (nearest * largest).reshape(values.shape)


def test_the_definition_of_nf4_gives_the_published_values() -> None:
    """bitsandbytes' table (docs/methods.md#codebooks), recomputed from quantiles: equal to 1.1e-7."""
    assert np.abs(codebooks.nf4() - PUBLISHED_NF4).max() < 2e-7


@pytest.mark.parametrize(
    ("codes", "block", "expected"),
    [
        (codebooks.nf4(), 32, 0.0873),
        (codebooks.nf4(), 64, 0.0919),
        (codebooks.nf4(), 128, 0.0956),
        (codebooks.nf4(), 256, 0.0987),
        (codebooks.fp4(), 64, 0.1219),
        (codebooks.even(4), 64, 0.1076),
        (codebooks.int8(), 0, 0.0087),
    ],
)
def test_losses_are_those_of_the_methods_page(codes: npt.NDArray[Any], block: int, expected: float) -> None:
    assert codebooks.loss(NORMAL, codes, block) == pytest.approx(expected, rel=0.01)


@given(st.integers(2, 6), st.integers(0, 1000))
@example(5, 355)  # where neither quantiles nor even steps without a zero lead to less
def test_no_codes_lose_less_than_the_best(bits: int, seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal((4, 256))
    best = codebooks.loss(values, codebooks.best(values, levels=2**bits, block=64), 64)
    assert best <= codebooks.loss(values, codebooks.even(bits), 64)
    assert len(codebooks.best(values, levels=2**bits, block=64)) == 2**bits


def test_a_block_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="100 values are no multiple of 64"):
        codebooks.loss(np.ones(100), codebooks.nf4(), 64)


@pytest.mark.parametrize(("name", "block"), [("nf4", 64), ("fp4", 64), ("int8", 0)])
def test_a_format_that_does_what_it_says_passes(name: str, block: int) -> None:
    codes = {"nf4": codebooks.nf4, "fp4": codebooks.fp4, "int8": codebooks.int8}[name]()
    verdict = check_round_trip(values=NORMAL, read=stored(NORMAL, codes, block), name=name, block=block, declared=block or None)
    assert verdict.outcome is PASS


@pytest.mark.parametrize(
    ("read", "block", "says"),
    [
        (NORMAL, 64, "less than the format can lose"),
        (NORMAL.astype(np.float16), 64, "less than the format can lose"),
        (stored(NORMAL, codebooks.even(3), 64), 64, "more than the format loses"),
        (stored(NORMAL, codebooks.nf4(), 64), 128, "blocks of 128, declared are 64"),
        (stored(NORMAL, codebooks.nf4(), 1024), 64, "more than the format loses"),
        (stored(NORMAL, codebooks.fp4(), 64), 64, "more than the format loses"),
        (np.full_like(NORMAL, np.nan), 64, "more than the format loses"),
    ],
)
def test_a_format_that_is_another_fails(read: Any, block: int, says: str) -> None:
    verdict = check_round_trip(values=NORMAL, read=read, name="nf4", block=block, declared=64)
    assert verdict.outcome is FAIL
    assert says in str(verdict)


def test_unknown_codes_are_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="codes of gptq are not known"):
        check_round_trip(values=NORMAL, read=NORMAL, name="gptq", block=64, declared=64)


@pytest.mark.parametrize(
    ("code", "counts", "outcome"),
    [
        (PUBLISHED_NF4, [5] * 16, PASS),
        (PUBLISHED_NF4, [5] * 15 + [0], FAIL),
        ([*PUBLISHED_NF4[:3], -0.394, *PUBLISHED_NF4[4:]], [5] * 16, FAIL),
        (np.linspace(-1, 1, 16), [5] * 16, FAIL),
        (PUBLISHED_NF4[1:], [5] * 16, FAIL),
    ],
)
def test_codes(code: list[float] | npt.NDArray[Any] | tuple[float, ...], counts: list[int], outcome: Outcome) -> None:
    assert check_codebook(found={"code": np.array(code), "counts": np.array(counts)}, name="nf4").outcome is outcome


def test_zero_has_two_codes_in_fp4() -> None:
    """A positive and a negative one: 15 values, and one code that need not be used."""
    code = np.concatenate([codebooks.fp4(), [0.0]])
    assert check_codebook(found={"code": code, "counts": np.array([5] * 15 + [0])}, name="fp4").outcome is PASS


def test_error_beside_the_best() -> None:
    best = codebooks.best(NORMAL, levels=16, block=64)
    reads = {"nf4": codebooks.nf4(), "best": best, "fp4": codebooks.fp4()}
    found = {
        name: check_against_best(values=NORMAL, read=stored(NORMAL, codes, 64), name="nf4", block=64).outcome
        for name, codes in reads.items()
    }
    # k-means itself is within 5 % of nf4 at this block: what is told apart is a worse codebook, and no quantization at all.
    assert found == {"nf4": PASS, "best": PASS, "fp4": FAIL}
    assert check_against_best(values=NORMAL, read=NORMAL, name="nf4", block=64).outcome is FAIL


def test_double_quantization() -> None:
    rng = np.random.default_rng(1)
    plain = stored(NORMAL, codebooks.nf4(), 64)
    # Scales of 8 bits: each block's is off by up to half a step of 1/127 of the largest.
    runs = plain.reshape(-1, 64)
    double = (runs * (1 + rng.uniform(-1, 1, (len(runs), 1)) / 254)).reshape(plain.shape)
    bits = {"plain": 32 / 64, "double": 8 / 64 + 32 / (64 * 256)}

    def check(plain_values: Any, double_values: Any, double_bits: float = bits["double"]) -> Verdict:
        return check_double_quantization(
            plain={"values": plain_values, "state_bits": bits["plain"], "block_size": 64},
            double={"values": double_values, "state_bits": double_bits, "block_size": 64},
            values=NORMAL,
        )

    assert check(plain, double).outcome is PASS
    assert "bit-equal" in str(check(plain, plain))
    assert "bits a value were saved" in str(check(plain, double, bits["plain"]))
    assert "more error" in str(check(plain, double * 1.05))


@pytest.mark.parametrize(
    ("errors", "outcome", "says"),
    [
        ([0.09, 0.11], PASS, ""),
        ([0.09, 0.0016], FAIL, "b: 0.0016, as if it was not quantized"),
        ([0.3, 0.09], FAIL, "a: 0.3000, more than the format loses"),
        ([], FAIL, "no linear is quantized"),
        ([0.09, math.nan], FAIL, "b: nan"),
    ],
)
def test_loss_of_weights(errors: Any, outcome: Outcome, says: str) -> None:
    found = [{"name": name, "error": error} for name, error in zip("ab", errors, strict=False)]
    verdict = check_loss_of_weights(found=found, name="nf4", block=64)
    assert verdict.outcome is outcome
    assert says in str(verdict)


def described(name: str, values: Any) -> dict[Any, Any]:
    scaled = (values - values.mean()) / values.std()
    return {
        "name": name,
        "values": values.size,
        "mean": float(values.mean()),
        "spread": float(values.std()),
        "kurtosis": float(scipy_stats.kurtosis(values, axis=None)),
        "histogram": np.histogram(np.clip(scaled, -4, 4), bins=16, range=(-4, 4))[0],
    }


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (NORMAL, False),
        (NORMAL + 0.1, True),
        (np.random.default_rng(0).standard_t(5, (64, 4096)), True),
        (np.random.default_rng(0).uniform(-1, 1, (64, 4096)), True),
        (np.random.default_rng(0).standard_t(20, (64, 4096)), False),
    ],
)
def test_near_normal(values: npt.NDArray[Any], named: bool) -> None:
    verdict = check_near_normal(found=[described("up_proj", values), described("other", NORMAL)])
    assert verdict.outcome is PASS
    assert verdict.key == f"{2 - named} of 2 near normal"
    assert "up_proj: mean" in verdict.details[0]
    assert verdict.details[0].endswith("not near normal") is named


def test_every_histogram_is_in_the_report() -> None:
    found = [described(f"layers.{number}.up_proj", NORMAL) for number in range(28)]
    details = check_near_normal(found=found).details
    assert [line.split()[-5] for line in details] == [f"layers.{number}.up_proj:" for number in range(28)]


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 0.0), (float("nan"), float("nan")), (0.0, float("inf"))])
def test_a_linear_that_is_constant_or_not_finite_fails(mean: float, spread: float) -> None:
    broken = described("up_proj", NORMAL) | {"mean": mean, "spread": spread, "kurtosis": float("nan")}
    verdict = check_near_normal(found=[described("other", NORMAL), broken])
    assert verdict.outcome is FAIL
    assert verdict.details[0] == f"up_proj: mean {mean:g}, standard deviation {spread:g}"


def test_near_normal_of_nothing_fails() -> None:
    assert check_near_normal(found=[]).outcome is FAIL
