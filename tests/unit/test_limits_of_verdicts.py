"""The numbers in reports: a limit is where the outcome changes, and a baseline is what the value was compared with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_llminfer.families.accuracy.answers import check_flips
from pytest_llminfer.families.accuracy.check import MARGIN, check_accuracy_at_once
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.recorded import recorded_runs
from pytest_llminfer.families.divergence.check import RATIO, Limits, check_divergence, check_divergence_ratio
from pytest_llminfer.families.layout.check import check_layout_unchanged, summarise_layout
from pytest_llminfer.families.memory.check import check_no_growth, check_peak, check_weights, weights_tolerance
from pytest_llminfer.families.memory.profile import ProfileLine, check_profile
from pytest_llminfer.families.throughput.check import check_throughput
from pytest_llminfer.families.throughput.session import Host, Session
from pytest_llminfer.observations.generation import Scores
from pytest_llminfer.observations.layout import Parameter
from pytest_llminfer.observations.memory import MemoryReport
from pytest_llminfer.stats.decision import ALPHA
from pytest_llminfer.verdict import Measurement, Outcome, Verdict

MIB = 2**20


def number(verdict: Verdict, name: str) -> Measurement:
    (found,) = [measurement for measurement in verdict.measurements if measurement.name == name]
    return found


def weights(measured: int) -> Verdict:
    report = MemoryReport("cpu", measured, 0, measured, measured, measured, "torch allocator", 512)
    return check_weights(report=report, predicted=1000 * MIB)


@pytest.mark.parametrize("side", [1, -1])
def test_weights_are_held_to_a_limit_on_either_side(side: int) -> None:
    limit = 1000 * MIB + side * weights_tolerance(1000 * MIB)
    at, beyond = weights(limit), weights(limit + side)
    assert (at.outcome, beyond.outcome) == (Outcome.PASS, Outcome.FAIL)
    assert (number(at, "weights").baseline, number(at, "weights").limit) == (1000 * MIB, limit)


def test_a_peak_and_growth_have_one_limit() -> None:
    def peak(measured: int) -> Verdict:
        return check_peak(measured=measured, budget=100 * MIB, budget_source="the record", resolution=MIB)

    found = number(peak(100 * MIB), "peak memory")
    assert found.baseline == 100 * MIB
    assert isinstance(found.limit, int)
    assert [peak(found.limit + more).outcome for more in (0, 1)] == [Outcome.PASS, Outcome.FAIL]
    grown = check_no_growth(live_bytes=[5, 5, 5, 5, 6, 6])
    assert (grown.outcome, number(grown, "growth after warm-up").limit) == (Outcome.FAIL, 0)


def test_lines_of_a_memory_profile_have_the_prediction_and_the_gate() -> None:
    verdict = check_profile(lines=[ProfileLine("weights", 100, 80, 10), ProfileLine("capacity", 7, 7, 0, "tokens")])
    assert [(each.value, each.baseline, each.limit) for each in verdict.measurements] == [(80, 100, 90), (7, 7, 7)]


def test_a_throughput_has_its_record_and_fails_just_beyond_its_limit() -> None:
    host = Host("Xeon", 2e-3, "torch-1")

    def session(change: float) -> Session:
        return Session(1e-3 * (1 + change), 12, math.log((1 + change) / 2), None, host)

    def speed(change: float) -> Verdict:
        sessions = [session(change)] * 3
        return check_throughput(sessions=sessions, recorded=[session(0.0)], metric="decode", tokens_per_step=8, on_cpu=True)

    found = number(speed(0.0), "step over a frozen step, slower than recorded")
    assert number(speed(0.0), "decode").baseline == pytest.approx(8000)
    assert (found.value, found.baseline) == (0.0, 0.0)
    assert found.limit is not None
    # What is no suspicion in one start is not looked at again.
    assert found.limit > 10
    assert speed((found.limit + 5) / 100).outcome is Outcome.FAIL
    assert speed((found.limit - 0.1) / 100).outcome is Outcome.PASS


def answers(right: int, n: int = 300) -> dict[str, Answer]:
    return {f"q{k}": Answer(strict=k < right, flexible=k < right, tokens=9) for k in range(n)}


def test_accuracy_has_its_record_its_margin_and_its_level() -> None:
    recorded = recorded_runs([answers(270), answers(271), answers(269), answers(270)], 0)
    verdict = check_accuracy_at_once(answers=answers(270), recorded=recorded, cells=2)
    now, before = number(verdict, "accuracy now"), number(verdict, "accuracy recorded")
    assert now.value == pytest.approx(90.0)
    assert now.baseline == before.value
    assert number(verdict, "largest drop not ruled out").limit == 100 * MARGIN
    assert number(verdict, "sequential p-value").limit == ALPHA / 2
    flips = number(check_flips(answers=answers(270), recorded=recorded), "flips")
    assert isinstance(flips.limit, int)
    over = check_flips(answers=answers(270 - flips.limit - 3), recorded=recorded)
    assert over.outcome is Outcome.INCONCLUSIVE


def scores(probability: float) -> list[Scores]:
    """Four prompts of eight positions, whose likeliest token has this probability."""
    top = np.log(np.array([[probability, 1 - probability]] * 8, np.float32))
    return [Scores(top[:, 0], np.tile(np.array([[3, 4]], np.int64), (8, 1)), top) for _ in range(4)]


def test_a_divergence_has_both_limits_and_a_share_is_a_number() -> None:
    limit = Limits(0.05, 0.9, "a table")
    verdict = check_divergence(
        candidate=scores(0.7), reference=scores(0.7), limit=limit, kind="the same weights", dtype="fp32", of="the record"
    )
    top1 = number(verdict, "same top-1")
    assert (top1.value, top1.limit, str(top1).partition(" (")[0]) == (1.0, 0.9, "same top-1: 100.00%")
    assert number(verdict, "mean KL").limit == 0.05
    ratio = check_divergence_ratio(
        candidate=scores(0.7), recorded=scores(0.7), reference=scores(0.6), noise=0.0, dtype="fp32", of="transformers"
    )
    assert (number(ratio, "ratio to the recorded KL").baseline, number(ratio, "ratio to the recorded KL").limit) == (1.0, RATIO)


def test_a_layout_has_the_bytes_of_its_record() -> None:
    held, recorded = (Parameter("a.weight", "bfloat16", (4, columns), (4, columns), 8 * columns) for columns in (4, 8))
    verdict = check_layout_unchanged(parameters=[held], expected=summarise_layout([recorded]))
    assert (number(verdict, "bytes now").value, number(verdict, "bytes now").baseline) == (32, 64)
    assert number(verdict, "tensors").baseline == 1
