"""Speeds by their parts: what is judged on which host, what fails, and what fresh starts clear."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from pytest_llminfer.families.throughput.check import check_throughput, compare
from pytest_llminfer.families.throughput.counts import new_kernels
from pytest_llminfer.families.throughput.observe import WORKLOADS, Speed, sessions
from pytest_llminfer.families.throughput.recorded import Judged
from pytest_llminfer.families.throughput.session import Device, Host, Session, summarise_session
from pytest_llminfer.observations.speed import StepTrace
from pytest_llminfer.verdict import Outcome, Verdict

XEON = Host("Xeon", 2e-3, "torch-1")
BUSY, REST = 1.2e-3, 1.8e-3


def on_gpu(
    *, busy: float = 1.0, rest: float = 1.0, host: Host = XEON, rate: float = 4e12, launches: int = 3, kernels: int = 180
) -> Session:
    """A session whose accelerator and host took so many times as long as usual; 16 steps were traced."""
    device = Device(BUSY * busy, rate, 16, 16 * kernels, 16 * 2, 16, 16 * launches)
    step, reference = BUSY * busy + REST * rest, host.reference_seconds
    return Session(step, 12, math.log(step / reference), math.log(REST * rest / reference), host, device)


def on_processor(*, step: float = 1.0, calibrated: float = 1.0) -> Session:
    return Session(3e-3 * step, 12, math.log(1.5 * calibrated), None, replace(XEON, reference_seconds=2e-3 * step / calibrated))


def check(*starts: Session, recorded: Any = None, on_cpu: bool = False, **options: Any) -> Verdict:
    record = [on_gpu()] if recorded is None else recorded
    return check_throughput(sessions=starts, recorded=record, metric="decode", tokens_per_step=8.0, on_cpu=on_cpu, **options)


def test_the_same_again_passes_from_one_session_on() -> None:
    verdict = check(on_gpu())
    assert verdict.outcome is Outcome.PASS
    assert verdict.key == "2,667 tok/s"
    assert verdict.smallest_detectable == "accelerator's busy seconds +1.5%; host's part over a frozen step +8.3%"


@pytest.mark.parametrize("slower", [1.02, 1.05, 1.10])
def test_slower_kernels_fail_after_two_fresh_starts(slower: float) -> None:
    slow = on_gpu(busy=slower)
    assert check(slow).outcome is Outcome.INCONCLUSIVE
    verdict = check(slow, slow, slow)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0] == f"accelerator's busy seconds {slower - 1:+.1%}, at most +1.5%"


def test_a_slower_host_part_fails_on_the_same_host_alone() -> None:
    slow = on_gpu(rest=1.2)
    assert check(slow, slow, slow).outcome is Outcome.FAIL
    elsewhere = on_gpu(rest=1.2, host=replace(XEON, reference_seconds=1.2 * XEON.reference_seconds))
    assert check(elsewhere).outcome is Outcome.PASS


# Wall seconds, busy seconds, frozen step, ln of the step over it, h, and (steps, kernels, copies, waits, launches): three
# clean starts of vLLM 0.25.1 on one H200 (tools/speed_on_gpu.py).
VLLM_STARTS = {
    "prefill": [
        (31.1643e-3, 10.92997e-3, 8.0026e-3, 1.4748, 1.0131, (8, 1944, 288, 18, 2088)),
        (20.8139e-3, 10.87915e-3, 4.1177e-3, 1.5634, 0.7528, (8, 1823, 278, 17, 1885)),
        (23.4787e-3, 10.95041e-3, 5.8911e-3, 1.5416, 0.7840, (8, 1952, 288, 18, 1808)),
    ],
    "decode": [
        (2.2509e-3, 1.52987e-3, 4.9622e-3, -0.8036, -1.9114, (16, 2254, 111, 19, 526)),
        (3.0801e-3, 1.52707e-3, 7.8890e-3, -0.9152, -1.6395, (16, 2262, 111, 19, 526)),
        (2.4708e-3, 1.52779e-3, 5.0450e-3, -0.8517, -1.6419, (16, 2262, 111, 19, 526)),
    ],
}


@pytest.mark.parametrize("phase", VLLM_STARTS)
def test_clean_starts_that_hide_the_host_behind_graphs_pass_beside_each_other(phase: str) -> None:
    starts = [
        Session(wall, 12, over, own, replace(XEON, reference_seconds=2e-3), Device(busy, 4e12, *counts))
        for wall, busy, _, over, own, counts in VLLM_STARTS[phase]
    ]
    for record in starts:
        for start in starts:
            assert check(start, recorded=[record]).outcome is Outcome.PASS
    # The host's part alone would not: it moved by more than a real slowdown does.
    assert max(own for *_, own, _ in VLLM_STARTS[phase]) - min(own for *_, own, _ in VLLM_STARTS[phase]) > math.log(1.15)


def test_one_fresh_start_that_is_fast_again_clears_a_slow_one() -> None:
    slow = on_gpu(busy=1.05, rest=1.3)
    assert check(slow, on_gpu()).outcome is Outcome.PASS
    assert check(slow, slow, on_gpu()).outcome is Outcome.PASS


def test_faster_never_fails() -> None:
    assert check(on_gpu(busy=0.5, rest=0.5)).outcome is Outcome.PASS


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (replace(XEON, reference_seconds=4e-3), "another host than any recorded one (a frozen step takes 2.00 times as long)"),
        (replace(XEON, reference_seconds=1e-3), "another host than any recorded one (a frozen step takes 0.50 times as long)"),
        (replace(XEON, cpu="EPYC"), "another host than any recorded one, by its processor"),
    ],
)
def test_another_host_is_judged_by_its_accelerator_and_the_verdict_says_so(host: Host, words: str) -> None:
    fine = check(on_gpu(rest=2.0, host=host))
    assert fine.outcome is Outcome.PASS
    assert words in fine.details[0]
    slow = on_gpu(busy=1.02, host=host)
    assert check(slow, slow, slow).outcome is Outcome.FAIL


def test_each_host_has_its_own_class_in_one_record() -> None:
    other = replace(XEON, reference_seconds=4e-3)
    record = [on_gpu(), on_gpu(rest=2.4, host=other)]
    assert check(on_gpu(rest=2.4, host=other), recorded=record).outcome is Outcome.PASS
    slow = on_gpu(rest=2.4)
    assert check(slow, slow, slow, recorded=record).outcome is Outcome.FAIL


def test_a_small_host_part_is_not_judged() -> None:
    record = [on_gpu(rest=0.02)]
    comparison = compare(sessions=[on_gpu(rest=0.04)], recorded=record, on_cpu=False)
    assert [part.name for part in comparison.parts] == ["accelerator's busy seconds"]
    grown = on_gpu(rest=1.0)
    assert check(grown, grown, grown, recorded=record).outcome is Outcome.FAIL


def test_a_lost_graph_fails_where_the_time_grew_and_is_told_where_it_did_not() -> None:
    lost = on_gpu(launches=182)
    told = check(lost)
    assert told.outcome is Outcome.PASS
    assert told.details[0] == "launches a step: 182.0, recorded 3.0"
    slow = on_gpu(launches=182, rest=1.5)
    assert check(slow, slow, slow).outcome is Outcome.FAIL
    elsewhere = on_gpu(launches=182, rest=3.0, host=replace(XEON, reference_seconds=4e-3))
    assert check(elsewhere, elsewhere, elsewhere).outcome is Outcome.FAIL


def test_more_work_makes_a_suspicion_a_failure() -> None:
    """1.3 % is within the spread of starts, and is not where more kernels run."""
    slower = on_gpu(busy=1.013)
    assert check(slower, slower, slower).outcome is Outcome.PASS
    more = replace(slower, device=replace(slower.device, kernels=16 * 192)) if slower.device else slower
    verdict = check(more, more, more, new_kernels="copy (+192)")
    assert verdict.outcome is Outcome.FAIL
    assert "kernels that are new or run more often: copy (+192)" in verdict.details


def test_new_kernels_are_named_with_the_most_frequent_first() -> None:
    assert new_kernels({"a": 16, "b": 33, "c": 100}, {"a": 16, "b": 17}) == "c (+100), b (+16)"
    assert new_kernels({"a": 16}, {"a": 16, "b": 1}) == ""


def test_slower_clocks_are_allowed_for_to_a_tenth() -> None:
    assert check(on_gpu(busy=1.08, rate=4e12 / 1.08)).outcome is Outcome.PASS
    beside = on_gpu(busy=1.12, rate=4e12 / 1.08)
    assert check(beside, beside, beside).outcome is Outcome.FAIL
    throttled = check(on_gpu(busy=2.0, rate=2e12))
    assert throttled.outcome is Outcome.INVALID
    assert "the accelerator's own rate is 50% below the slowest recorded one" in throttled.details[0]


def test_faster_clocks_hide_nothing_and_accuse_nobody() -> None:
    assert check(on_gpu(rate=5e12)).outcome is Outcome.PASS
    slow = on_gpu(busy=1.05, rate=5e12)
    assert check(slow, slow, slow).outcome is Outcome.FAIL


def test_on_a_processor_both_figures_must_be_slower() -> None:
    record = [on_processor()]
    slow = on_processor(step=1.4, calibrated=1.4)
    assert check(slow, slow, slow, recorded=record, on_cpu=True).outcome is Outcome.FAIL
    # The laptop of 178 % raw, 77.8 % after calibration.
    laptop = on_processor(step=1 / 1.78, calibrated=1 / 0.778)
    verdict = check(laptop, laptop, laptop, recorded=record, on_cpu=True)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "but bare wall time -43.8%" in verdict.details[0]
    busy = on_processor(step=1.8, calibrated=1.02)
    assert check(busy, recorded=record, on_cpu=True).outcome is Outcome.PASS


def test_without_a_profiler_wall_time_is_judged_on_its_own_host() -> None:
    record = [replace(on_gpu(), device=None, host_over_reference=None)]
    slow = replace(on_gpu(busy=1.3, rest=1.3), device=None, host_over_reference=None)
    verdict = check(slow, slow, slow, recorded=record, untraced="the profiler saw no kernel")
    assert verdict.outcome is Outcome.FAIL
    assert "the accelerator's part is not judged: the profiler saw no kernel" in verdict.details
    elsewhere = replace(slow, host=replace(XEON, cpu="EPYC"))
    assert check(elsewhere, recorded=record).outcome is Outcome.INCONCLUSIVE


RATES = {"copy_bytes_per_second": 4e12, "matmul_flops_per_second": 6e14, "python_loops_per_second": 3e7}
OLD = {"sessions": [{"tokens_per_second": 8 / 3e-3, "rounds": 5, "calibration": RATES}]}


def test_a_record_of_wall_time_stays_one() -> None:
    (old,) = sessions(OLD, WORKLOADS["decode"])
    assert old == Session(old.step_seconds, 5)
    assert old.step_seconds == pytest.approx(3e-3)
    same = check(on_gpu(), recorded=[old])
    assert same.outcome is Outcome.PASS
    assert "only bare wall times are recorded" in same.details[0]
    assert check(on_gpu(busy=4, rest=4), recorded=[old]).outcome is Outcome.INCONCLUSIVE
    slow = on_processor(step=4, calibrated=4)
    assert check(slow, slow, slow, recorded=[old], on_cpu=True).outcome is Outcome.FAIL


def test_a_new_session_joins_an_old_record_and_is_then_what_judges() -> None:
    speed = Speed(WORKLOADS["decode"], on_gpu(), {"gemm": 16})
    record = json.loads(json.dumps(speed.record(OLD)))
    assert record["kernels"] == {"gemm": 16}
    old, new = sessions(record, WORKLOADS["decode"])
    assert (old.host, new) == (None, on_gpu())
    slow = on_gpu(busy=1.05)
    assert check(slow, slow, slow, recorded=[old, new]).outcome is Outcome.FAIL


def test_the_last_forty_sessions_of_each_processor_are_kept() -> None:
    record: dict[str, Any] = {"sessions": [on_gpu(host=replace(XEON, cpu="EPYC")).to_dict()]}
    for _ in range(45):
        record = Speed(WORKLOADS["decode"], on_gpu(), {}).record(record)
    assert len(record["sessions"]) == 41


def test_nothing_recorded_is_inconclusive() -> None:
    assert check(on_gpu(), recorded=[]).outcome is Outcome.INCONCLUSIVE


def test_fresh_starts_are_asked_for_only_where_they_can_help() -> None:
    def judged(session: Session, record: Session | None = None) -> Judged:
        expected = {"sessions": [(record or on_gpu()).to_dict()]}
        return Judged(Speed(WORKLOADS["decode"], session, {}), expected, on_cpu=False)

    slow, host = on_gpu(busy=1.05), replace(XEON, cpu="EPYC")
    assert not judged(on_gpu()).undecided([])
    assert judged(slow).undecided([])
    assert judged(slow).undecided([slow])
    assert not judged(slow).undecided([on_gpu()])
    assert not judged(on_gpu(rest=3, host=host)).undecided([])
    assert not Judged(Speed(WORKLOADS["decode"], on_gpu(busy=9), {}), OLD, on_cpu=False).undecided([])


TRACE = StepTrace(steps=16, busy_seconds=16e-3, kernels=160, copies=16, synchronisations=16, launches=160, replays=0)


def test_a_session_is_made_of_blocks_between_frozen_steps() -> None:
    """The machine is twice as slow from the second block on, with everything that it does."""
    session = summarise_session(
        blocks=[3e-3, 6e-3, 6e-3], references=[2e-3, 2e-3, 4e-3, 4e-3], cpu="Xeon", reference="torch-1", trace=TRACE, rate=4e12
    )
    assert session.over_reference == pytest.approx(math.log(1.5))
    assert session.host_over_reference == pytest.approx(math.log(5 / 4))
    assert session.host == Host("Xeon", 3e-3, "torch-1")
    assert session.device is not None
    assert (session.device.busy_seconds, session.host_share) == pytest.approx((1e-3, 5 / 6))


def test_a_host_that_hides_behind_its_accelerator_has_a_hundredth() -> None:
    session = summarise_session(blocks=[1e-3], references=[2e-3] * 2, cpu="Xeon", reference="torch-1", trace=TRACE, rate=1.0)
    assert session.host_over_reference == pytest.approx(math.log(0.01 * 1e-3 / 2e-3))
    assert session.host_share == 0.01


@pytest.mark.parametrize(("blocks", "references"), [([], [1.0]), ([1.0], [1.0])])
def test_blocks_without_a_frozen_step_on_either_side_are_no_session(blocks: list[float], references: list[float]) -> None:
    with pytest.raises(ValueError, match="reference steps around them"):
        summarise_session(blocks=blocks, references=references, cpu="", reference="", trace=None, rate=0.0)
