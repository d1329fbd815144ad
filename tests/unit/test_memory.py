from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pytest_llminfer
from pytest_llminfer.engines.profiles import profile
from pytest_llminfer.families.memory.check import (
    check_kv_bytes_per_token,
    check_no_growth,
    check_peak,
    check_weights,
    predict_weights,
    weights_tolerance,
)
from pytest_llminfer.models.shape import ModelShape
from pytest_llminfer.observations.kv_cache import CacheLayer, CacheReport
from pytest_llminfer.observations.memory import MemoryReport
from pytest_llminfer.predict.allocator import cuda_allocation
from pytest_llminfer.verdict import Outcome, Verdict

TRANSFORMERS = profile("transformers")

GIB, MIB = 2**30, 2**20
SHAPES = Path(pytest_llminfer.__file__).parent / "models" / "shapes"
REFERENCE = ModelShape("llama", layers=8, hidden=192, heads=3, kv_heads=1, head_dim=64, intermediate=512, vocab=1024, tied=True)


def bundled(name: str) -> ModelShape:
    return ModelShape.from_config(json.loads((SHAPES / name / "config.json").read_text()))


@pytest.mark.parametrize(
    ("name", "quantization", "gib"),
    [
        ("llama-3-8b", "none", 14.9575),  # measured on an H100, docs/methods.md#measured-on-gpus
        ("llama-3-8b", "int8", 8.4627),  # measured on an H100
        ("qwen2.5-7b", "none", 14.1852),  # docs/methods.md#published-log-lines
    ],
)
def test_weights_are_predicted_to_four_decimals(name: str, quantization: str, gib: float) -> None:
    assert predict_weights(
        engine=TRANSFORMERS, shape=bundled(name), dtype="bf16", quantization=quantization
    ) / GIB == pytest.approx(gib, abs=5e-5)


def test_double_quantization_has_the_published_bits() -> None:
    shape = bundled("llama-3-8b")
    linears = 6_979_321_856
    kept = 2 * (shape.parameter_count - linears)
    double = predict_weights(engine=TRANSFORMERS, shape=shape, dtype="bf16", quantization="nf4") - kept
    plain = predict_weights(engine=TRANSFORMERS, shape=shape, dtype="bf16", quantization="nf4", double_quantized=False) - kept
    assert 8 * double / linears == pytest.approx(4.126953, abs=5e-4)
    assert 8 * plain / linears == pytest.approx(4.5, abs=5e-5)


@pytest.mark.parametrize(
    ("size", "counted"),
    [
        (1, 512),
        (512, 512),
        (513, 1024),
        (10 * MIB - 512, 10 * MIB - 512),
        (round(129.5 * MIB), 130 * MIB),  # Qwen2.5-7B down_proj
        (259 * MIB, 260 * MIB),  # gate_up
        (round(31.5 * MIB), 32 * MIB),  # qkv
        (round(24.5 * MIB), round(24.5 * MIB)),  # o: a rest of 1.5 MiB is split off
        (32 * MIB, 32 * MIB),
    ],
)
def test_allocations_are_rounded_as_the_allocator_rounds(size: int, counted: int) -> None:
    assert cuda_allocation(size) == counted


@given(st.integers(0, 2**34))
def test_an_allocation_is_never_smaller_and_hardly_larger(size: int) -> None:
    assert size <= cuda_allocation(size) <= size + MIB + 512
    assert cuda_allocation(size) % 512 == 0


@pytest.mark.parametrize(
    ("predicted", "tolerance"), [(7 * MIB, 0.07 * MIB), (800 * MIB, 8 * MIB), (2000 * MIB, 8 * MIB), (15000 * MIB, 45 * MIB)]
)
def test_the_tolerance_scales_with_the_model(predicted: int, tolerance: float) -> None:
    assert weights_tolerance(predicted) == pytest.approx(tolerance, rel=1e-3)


def memory(weights: int) -> MemoryReport:
    return MemoryReport("cpu", weights, 128, weights + 128, weights, weights, "process resident set", 16 * MIB)


# A layer of REFERENCE: q and o of 192 x 192, k and v of 64 x 192, three matrices of 512 x 192, together 393,216 weights with 1,728
# outputs. Beside them, in 16 bits, an embedding of 1,024 x 192 and 17 norms of 192.
KEPT = 2 * (1024 * 192 + 17 * 192)
MEASURED = {
    "none": KEPT + 8 * 2 * 393_216,
    # A byte a weight, and a scale in float32 a row.
    "int8": KEPT + 8 * (393_216 + 4 * 1_728),
    # Half a byte a weight, an absolute maximum in float32 for 64 of them, and a codebook of 16 in float32 for each linear.
    "fp4": KEPT + 8 * (393_216 // 2 + 4 * 393_216 // 64 + 7 * 64),
    # The maxima in 8 bits; of those one in float32 for 256 or fewer of a linear (3, 1, 1, 3, 6, 6 and 6), an offset, and a codebook
    # of 256 more.
    "nf4": KEPT + 8 * (393_216 // 2 + 393_216 // 64 + 7 * 64 + 4 * 26 + 7 * (4 + 1024)),
}


@pytest.mark.parametrize("quantization", MEASURED)
def test_the_bytes_of_a_quantized_model_pass_and_those_of_another_size_fail(quantization: str) -> None:
    predicted = predict_weights(engine=TRANSFORMERS, shape=REFERENCE, dtype="bf16", quantization=quantization)
    assert predicted == MEASURED[quantization]
    assert check_weights(report=memory(MEASURED[quantization]), predicted=predicted).outcome is Outcome.PASS
    # One linear of up in 16 bits.
    left = MEASURED[quantization] + 512 * 192 * (2 if quantization == "none" else 1)
    assert check_weights(report=memory(left), predicted=predicted).outcome is Outcome.FAIL


def test_weights_at_the_tolerance_pass_and_one_byte_beyond_fails() -> None:
    predicted = 10_000_000
    for sign in (1, -1):
        assert check_weights(report=memory(predicted + sign * 100_000), predicted=predicted).outcome is Outcome.PASS
        assert check_weights(report=memory(predicted + sign * 100_001), predicted=predicted).outcome is Outcome.FAIL


@pytest.mark.parametrize(("asked", "loaded"), [("nf4", "fp4"), ("nf4", "int8"), ("int8", "none"), ("none", "int8"), ("fp4", "nf4")])
def test_another_quantization_than_asked_for_fails_on_the_smallest_model(asked: str, loaded: str) -> None:
    measured = MEASURED[loaded]
    predicted = predict_weights(engine=TRANSFORMERS, shape=REFERENCE, dtype="bf16", quantization=asked)
    verdict = check_weights(report=memory(measured), predicted=predicted)
    assert verdict.outcome is Outcome.FAIL
    assert ("larger" if measured > predicted else "smaller") in verdict.details[0]


def test_a_second_copy_of_the_output_matrix_fails_on_the_smallest_model() -> None:
    predicted = predict_weights(engine=TRANSFORMERS, shape=REFERENCE, dtype="bf16", quantization="none")
    assert check_weights(report=memory(MEASURED["none"] + 2 * 1024 * 192), predicted=predicted).outcome is Outcome.FAIL


def test_no_weights_is_a_failure() -> None:
    assert check_weights(report=memory(0), predicted=0).outcome is Outcome.FAIL


def cache(prompt: int = 10, extended: int = 4, per_token: int = 256, extra: int = 0, layers: int = 2) -> CacheReport:
    def stage(tokens: int) -> tuple[Any, ...]:
        return tuple(
            CacheLayer((1, 1, tokens, 32), (1, 1, tokens, 32), "bfloat16", (per_token * tokens + extra) // layers)
            for _ in range(layers)
        )

    return CacheReport(prompt, extended, stage(prompt), stage(prompt + extended), ((0.0, 0.0),) * layers)


def test_the_cache_takes_its_bytes_a_token() -> None:
    verdict = check_kv_bytes_per_token(report=cache(), expected=256)
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "256 B/token")


@pytest.mark.parametrize(
    ("report", "said"),
    [(cache(per_token=512), "512.0 bytes a token instead of 256 (+100.00 %)"), (cache(extra=64), "the prompt: 262.4")],
)
def test_other_bytes_a_token_fail(report: CacheReport, said: str) -> None:
    verdict = check_kv_bytes_per_token(report=report, expected=256)
    assert verdict.outcome is Outcome.FAIL
    assert said in verdict.details[0]


@pytest.mark.parametrize("report", [cache(prompt=0), cache(extended=0)])
def test_a_cache_without_tokens_fails(report: CacheReport) -> None:
    assert check_kv_bytes_per_token(report=report, expected=256).outcome is Outcome.FAIL


def peak(measured: int, budget: int = 1000 * MIB, resolution: int = 0) -> Verdict:
    return check_peak(measured=measured, budget=budget, budget_source="the baseline", resolution=resolution, what="load peak")


@pytest.mark.parametrize(
    ("measured", "outcome"), [(1, Outcome.PASS), (1030 * MIB, Outcome.PASS), (1030 * MIB + 1, Outcome.FAIL), (0, Outcome.FAIL)]
)
def test_a_peak_may_be_three_percent_above_its_budget_and_any_amount_below(measured: int, outcome: Outcome) -> None:
    assert peak(measured).outcome is outcome


def test_the_resolution_widens_the_limit_by_itself_only() -> None:
    assert peak(1046 * MIB, resolution=16 * MIB).outcome is Outcome.PASS
    verdict = peak(1046 * MIB + 1, resolution=16 * MIB)
    assert verdict.outcome is Outcome.FAIL
    assert "load peak is 48,234,497 bytes above its budget (+4.60 %)" in verdict.details


def test_a_resolution_above_the_budget_lowers_the_power_and_says_so() -> None:
    verdict = peak(12 * MIB, budget=10 * MIB, resolution=32 * MIB)
    assert verdict.outcome is Outcome.PASS
    assert verdict.smallest_detectable == "33,869,005 bytes above the budget (+323.00 %): 3 % of it, and the resolution"
    assert peak(10 * MIB + 33_869_004, budget=10 * MIB, resolution=32 * MIB).outcome is Outcome.PASS
    assert peak(10 * MIB + 33_869_005, budget=10 * MIB, resolution=32 * MIB).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("measured", "resolution", "outcome"),
    [
        (8 * MIB, 128 * MIB, Outcome.PASS),
        (8 * MIB, 128 * MIB + 1, Outcome.INCONCLUSIVE),
        (800 * MIB, 128 * MIB + 1, Outcome.FAIL),
        (0, 128 * MIB + 1, Outcome.FAIL),
    ],
)
def test_only_a_resolution_above_sixteen_budgets_decides_nothing(measured: int, resolution: int, outcome: Outcome) -> None:
    assert peak(measured, budget=8 * MIB, resolution=resolution).outcome is outcome


@given(budget=st.integers(1, 2**36), resolution=st.integers(0, 2**30))
def test_the_smallest_detectable_rise_is_where_it_fails(budget: int, resolution: int) -> None:
    said = int(peak(budget, budget=budget, resolution=resolution).smallest_detectable.split()[0].replace(",", ""))
    assert peak(budget + said, budget=budget, resolution=resolution).outcome is Outcome.FAIL
    assert peak(budget + said - 1, budget=budget, resolution=resolution).outcome is not Outcome.FAIL


def test_no_budget_is_no_comparison() -> None:
    verdict = peak(8 * MIB, budget=0)
    assert (verdict.outcome, verdict.smallest_detectable) == (Outcome.INVALID, "none: no budget")


FLAT = [500, 900, *[1000] * 18]


def test_constant_memory_passes() -> None:
    verdict = check_no_growth(live_bytes=FLAT)
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "no growth")


@given(step=st.integers(1, 10**9), n=st.integers(4, 40))
def test_any_leak_at_every_request_fails(step: int, n: int) -> None:
    assert check_no_growth(live_bytes=[0, 0, *(1000 + step * index for index in range(n))]).outcome is Outcome.FAIL


def test_one_byte_left_behind_half_way_fails() -> None:
    verdict = check_no_growth(live_bytes=[0, 0, *[1000] * 9, *[1001] * 9])
    assert (verdict.outcome, verdict.key) == (Outcome.FAIL, "+1 B")


def test_a_leak_under_waiting_garbage_fails() -> None:
    assert check_no_growth(live_bytes=[0, 0, 1000, 1300, 1000, 1300, 1001, 1301, 1001, 1301]).outcome is Outcome.FAIL


@pytest.mark.parametrize("readings", [[0, 0, 1000, 1300, 1000, 1300, 1000, 1300], [0, 0, 1000, 1000, 900, 900, 800, 700]])
def test_garbage_that_is_collected_and_memory_that_shrinks_pass(readings: list[int]) -> None:
    assert check_no_growth(live_bytes=readings).outcome is Outcome.PASS


def test_a_leak_that_begins_late_fails() -> None:
    assert check_no_growth(live_bytes=[0, 0, *[1000] * 10, *range(1001, 1009)]).outcome is Outcome.FAIL


def test_memory_that_rose_late_and_stayed_is_inconclusive() -> None:
    verdict = check_no_growth(live_bytes=[1000] * 14 + [5000] * 6)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "rose by 4,000 bytes late" in verdict.details[0]


def test_a_rise_in_the_last_reading_alone_is_inconclusive() -> None:
    assert check_no_growth(live_bytes=[0, 0, *[1000] * 9, 1200]).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("readings", "outcome"), [([], Outcome.FAIL), ([1, 2], Outcome.INCONCLUSIVE), ([1, 2, 3, 3, 3], Outcome.INCONCLUSIVE)]
)
def test_too_few_readings_decide_nothing(readings: Any, outcome: Outcome) -> None:
    assert check_no_growth(live_bytes=readings).outcome is outcome


def test_shapes_without_memory_that_compiling_leaves_behind_are_not_counted() -> None:
    """In a process of its own, since it imports torch; as torch.compile makes them, they have no address to be asked for."""
    code = """
    import torch
    from torch._functorch import config
    from torch._subclasses import FakeTensorMode
    from pytest_llminfer.worker.backends.transformers import memory as meters

    meter = meters.HostMeter()
    before = meter.live_bytes()
    kept = []
    for unsafe in (False, True):
        with config.patch(fake_tensor_allow_unsafe_data_ptr_access=unsafe), FakeTensorMode():
            fakes = [torch.empty(2**20), torch.empty(2**20).reshape(1024, 1024)]
        assert [meters._holds_host_memory(fake) for fake in fakes] == [False, False], unsafe
        kept += fakes
    assert meter.live_bytes() == before
    real = torch.empty(2**20, dtype=torch.uint8)
    assert meters._holds_host_memory(real)
    assert meter.live_bytes() == before + 2**20
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
