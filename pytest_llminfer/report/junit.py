"""What a test found as properties of its JUnit test case, which CI systems show; programs read ``results.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_llminfer.report.result import TestResult
    from pytest_llminfer.verdict import Verdict


def properties(test: TestResult) -> list[tuple[str, str]]:
    """Names and texts, in order; a name stands once for each verdict, number and baseline."""
    return [
        *((("llminfer.cell", test.cell),) if test.cell else ()),
        *(pair for verdict in test.verdicts for pair in _of_verdict(verdict)),
        *(("llminfer.baseline", key) for key in test.baselines_used),
        *(("llminfer.baseline_missing", key) for key in test.baselines_missing),
        *(("llminfer.baseline_recorded", key) for key in test.baselines_recorded),
    ]


def _of_verdict(verdict: Verdict) -> Iterator[tuple[str, str]]:
    yield "llminfer.verdict", f"{verdict.outcome.name}: {verdict.claim}"
    yield "llminfer.key", verdict.key
    for measurement in verdict.measurements:
        yield "llminfer.number", str(measurement)
    yield "llminfer.limit", f"{verdict.threshold} (from {verdict.threshold_source})"
    yield "llminfer.minimum_detectable_effect", verdict.smallest_detectable
