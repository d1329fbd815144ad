"""Preemption: that it happened at all, without which a small pool has tested nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.verdict import Measurement, Outcome, Verdict

if TYPE_CHECKING:
    from pytest_llminfer.observations.kv_cache import CacheCounters


def check_preempted(*, counters: CacheCounters, requests: int) -> Verdict:
    """Whether at least one of the ``requests`` lost its cache to others while they ran."""
    count = counters.preemptions
    return Verdict(
        outcome=Outcome.PASS if count else Outcome.FAIL,
        claim="a pool too small for all requests made the engine preempt some of them",
        key="unknown" if count is None else f"{count} preemptions",
        measurements=(Measurement("preemptions", "unknown" if count is None else count, "", requests, "requests at once"),),
        threshold="at least 1",
        threshold_source="the pool was made too small for that",
        smallest_detectable="exact",
        advice="the pool is larger than was asked for, or the scheduler lets in only what it can finish: ask more at once",
        details=() if count else ("the engine does not count them" if count is None else "nothing was preempted",),
    )
