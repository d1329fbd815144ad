"""Speed: prefill and decode as fast as in the recorded sessions, the accelerator's part and the host's each by itself."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.throughput.observe import BLOCKS, WORKLOADS
from pytest_llminfer.families.throughput.recorded import Judged, read

if TYPE_CHECKING:
    from pytest_llminfer.baselines.expectations import Baseline
    from pytest_llminfer.families.throughput.observe import Throughput
    from pytest_llminfer.plugin.judging import Judge


@pytest.mark.llminfer_needs("reference_step")
@pytest.mark.parametrize("phase", list(WORKLOADS))
def test_tokens_per_second(throughput: Throughput, baseline: Baseline, judge: Judge, phase: str) -> None:
    """Fixed prompt and output lengths; each session that records is kept, so that the baseline knows its own noise.

    A speed that is suspicious is measured on fresh starts, two at most, which are judged with it.
    """
    # First what it is judged by: a speed that nothing can judge is not measured.
    workload = WORKLOADS[phase]
    expected = baseline.expected(
        f"throughput_{phase}",
        observe=partial(throughput.observe, workload=workload),
        conditions=asdict(workload) | throughput.conditions,
        n=BLOCKS,
        per_hardware=True,
        per_parallelism=True,
        arguments="all",
        read=partial(read, workload=workload),
    )
    judged = Judged(throughput(workload), expected, on_cpu=throughput.on_cpu)
    judge(judged.verdict(throughput.confirm(judged)))
