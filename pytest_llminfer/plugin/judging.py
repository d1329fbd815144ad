"""Where a verdict becomes a test outcome: the one place that passes, fails, or calls a comparison unfair."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llminfer.plugin.hints import working
from pytest_llminfer.report.notes import LOADED, VERDICT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_llminfer.baselines.notes import Note
    from pytest_llminfer.plugin.options import Options
    from pytest_llminfer.verdict import Verdict

LOADS = pytest.StashKey[list[dict[str, Any]]]()
"""Engine loads that no report has carried to the controller yet: the notes ``LOADED``."""

WORDS = {
    "inconclusive": ("inconclusive", "i", ("INCONCLUSIVE", {"yellow": True})),
    "invalid": ("error", "E", ("INVALID", {"red": True})),
}


class Judge:
    """Called with a verdict, in a test: returns on PASS, and on INCONCLUSIVE unless strict; ends the test otherwise."""

    def __init__(self, item: pytest.Item, options: Options) -> None:
        self._item, self._strict = item, options.session.strict

    def __call__(self, verdict: Verdict) -> None:
        """Note the verdict for the report, and fail the test if it is not good enough."""
        outcome = verdict.outcome.value
        fatal = outcome in ("fail", "invalid") or (self._strict and outcome == "inconclusive")
        noted = json.dumps({**verdict.to_dict(), "fatal": fatal})
        self._item.user_properties.append((VERDICT, working(noted, self._item.config)))
        if fatal:
            pytest.fail(working(str(verdict), self._item.config), pytrace=False)


def note_of(item: pytest.Item) -> Note:
    """Takes notes of this test, which travel with its report to the process that gathers them."""

    def note(name: str, value: Mapping[str, Any]) -> None:
        item.user_properties.append((name, json.dumps(value)))

    return note


def tell_loads(item: pytest.Item) -> None:
    """Give this test's report the loads that no other report carries."""
    pending = item.config.stash.get(LOADS, [])
    while pending:
        item.user_properties.append((LOADED, json.dumps(pending.pop())))


def verdicts(properties: list[tuple[str, object]]) -> list[dict[str, Any]]:
    """The verdicts that a test noted, oldest first, from its report's properties."""
    return [json.loads(str(value)) for name, value in properties if name == VERDICT]


def status(report: pytest.TestReport) -> tuple[str, str, tuple[str, dict[str, bool]]] | None:
    """How a report is shown, where a verdict says more than passed or failed."""
    if report.when != "call" or report.skipped:
        return None
    outcomes = {note["outcome"] for note in verdicts(report.user_properties)}
    if report.failed:
        return WORDS["invalid"] if "invalid" in outcomes else None
    return WORDS["inconclusive"] if "inconclusive" in outcomes else None


def without_traceback(call: pytest.CallInfo[Any], item: pytest.Item, *, strict: bool) -> None:
    """Errors of this package are complete in one message.

    What an engine cannot do, and what was recorded instead of judged, is a skip with that reason; so is a missing baseline, unless
    ``strict``. A request without an answer is INVALID: what it would have said is not known.
    """
    if call.excinfo is None:
        return
    from pytest_llminfer.errors import (
        BaselineRecordedError,
        LlminferError,
        MissingBaselineError,
        TransportError,
        UnsupportedError,
    )

    error, config = call.excinfo.value, item.config
    if not isinstance(error, LlminferError):
        return
    reason = working(str(error), config)
    if isinstance(error, MissingBaselineError) and strict:
        told: BaseException = pytest.fail.Exception(reason, pytrace=False)
    elif isinstance(error, (UnsupportedError, BaselineRecordedError, MissingBaselineError)):
        told = pytest.skip.Exception(reason, _use_item_location=True)
    elif isinstance(error, TransportError):
        verdict = _unanswered(reason)
        item.user_properties.append((VERDICT, json.dumps({**verdict.to_dict(), "fatal": True})))
        told = pytest.fail.Exception(str(verdict), pytrace=False)
    else:
        told = pytest.fail.Exception(f"{type(error).__name__}: {reason}", pytrace=False)
    call.excinfo = pytest.ExceptionInfo.from_exception(told.with_traceback(error.__traceback__))


def _unanswered(reason: str) -> Verdict:
    from pytest_llminfer.verdict import Outcome, Verdict

    return Verdict(
        outcome=Outcome.INVALID,
        claim="every request was answered",
        key="not answered",
        measurements=(),
        threshold="no failed request",
        threshold_source="a request without an answer is no wrong answer",
        smallest_detectable="exact",
        advice="look at the server's log; ask fewer at a time (engine argument 'concurrency'), or wait and run again",
        details=(reason,),
    )
