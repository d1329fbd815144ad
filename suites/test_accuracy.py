"""Accuracy: as many questions answered right as in the recorded runs, question by question, with no more asked than it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.families.accuracy.answers import check_flips

if TYPE_CHECKING:
    from pytest_llminfer.families.accuracy.run import AccuracyRun
    from pytest_llminfer.plugin.judging import Judge

pytestmark = pytest.mark.llminfer_only(has_tokenizer=True)


def test_accuracy_has_not_dropped(accuracy: AccuracyRun, judge: Judge) -> None:
    """The flexible reading (last number) gates, unless the record's right answers are found by the strict one alone. Answers that
    are cut off, malformed or of another length are INVALID, not worse.
    """
    for verdict in accuracy.objections():
        judge(verdict)
    judge(accuracy.conclude())


def test_outcomes_change_sides_no_more_than_in_repeats(accuracy: AccuracyRun, judge: Judge) -> None:
    """Losses and wins that cancel out leave accuracy as it was, and are a change all the same: a warning."""
    for verdict in accuracy.objections():
        judge(verdict)
    judge(check_flips(answers=accuracy.answers, recorded=accuracy.recorded, gate=accuracy.gate))


@pytest.mark.llminfer_only(quantized=True)
def test_accuracy_is_near_that_of_unquantized_weights(unquantized_accuracy: AccuracyRun, judge: Judge) -> None:
    """What the format costs, beside the same engine with 16-bit weights."""
    for verdict in unquantized_accuracy.objections():
        judge(verdict)
    judge(unquantized_accuracy.conclude())


def test_run_history_shows_no_drift(accuracy: AccuracyRun, judge: Judge) -> None:
    """This run and all in the run history: a point that one run cannot prove adds up. ``--run-history`` adds this run to it."""
    for verdict in accuracy.objections():
        judge(verdict)
    judge(accuracy.drift())
