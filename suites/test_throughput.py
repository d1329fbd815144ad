"""Speed: prefill and decode as fast as in the recorded sessions on this hardware, measured by the device's own rates."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.throughput.check import check_throughput
from pytest_llminfer.families.throughput.observe import ROUNDS, WORKLOADS, sessions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.families.throughput.check import Session
    from pytest_llminfer.families.throughput.observe import Speed, Throughput
    from pytest_llminfer.plugin.judging import Judge
    from pytest_llminfer.verdict import Verdict


@pytest.mark.llminfer_needs("calibrate", "memory")
@pytest.mark.parametrize("phase", list(WORKLOADS))
def test_tokens_per_second(throughput: Throughput, baseline: Baseline, judge: Judge, phase: str) -> None:
    """Fixed prompt and output lengths; each session that records is kept, so that the baseline knows its own noise.

    A speed during which the device's own rate moved, or was below all that is recorded, is measured again; one that stays so, or is
    suspicious, on four fresh starts, and those are judged. A session is not recorded while that rate moves: INVALID.
    """
    # First what it is judged by: a speed that nothing can judge is not measured.
    workload = WORKLOADS[phase]
    recorded: Sequence[Session] = baseline.expected(
        f"throughput_{phase}",
        observe=partial(throughput.observe, workload=workload, refuse=lambda moved: judge(_verdict(moved, ()))),
        conditions=asdict(workload) | throughput.conditions,
        n=ROUNDS,
        per_hardware=True,
        per_parallelism=True,
        arguments="all",
        read=sessions,
    )
    speed = throughput.fair(throughput(workload), recorded)
    if not speed.is_fair(recorded) or speed.is_suspicious(recorded):
        speed = throughput.confirm(workload)
    judge(_verdict(speed, recorded))


def _verdict(speed: Speed, recorded: Sequence[Session]) -> Verdict:
    return check_throughput(
        rounds=speed.rounds,
        before=speed.before,
        after=speed.after,
        sessions=recorded,
        metric=f"{speed.workload.phase} throughput, batch {speed.workload.batch}",
        yardstick=speed.yardstick,
        drift_bound=speed.drift_bound,
        shortfall_bound=speed.shortfall_bound,
    )
