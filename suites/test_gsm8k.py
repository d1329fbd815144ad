"""Accuracy: as many questions answered right as in the recorded runs, question by question, with no more asked than it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.families.accuracy.answers import check_flips

if TYPE_CHECKING:
    from pytest_llminfer.families.accuracy.run import AccuracyRun
    from pytest_llminfer.plugin.judging import Judge


def test_accuracy_has_not_dropped(accuracy: AccuracyRun, judge: Judge) -> None:
    """The flexible reading (last number) gates. Answers that are cut off, malformed or of another length are INVALID, not worse."""
    for verdict in accuracy.objections():
        judge(verdict)
    judge(accuracy.verdict)


def test_outcomes_change_sides_no_more_than_in_repeats(accuracy: AccuracyRun, judge: Judge) -> None:
    """Losses and wins that cancel out leave accuracy as it was, and are a change all the same: a warning."""
    for verdict in accuracy.objections():
        judge(verdict)
    judge(check_flips(answers=accuracy.answers, recorded=accuracy.recorded))


def test_accuracy_is_near_that_of_full_width(full_width_accuracy: AccuracyRun, judge: Judge) -> None:
    """Quantized cells only: what the format costs, beside the same engine with 16-bit weights."""
    for verdict in full_width_accuracy.objections():
        judge(verdict)
    judge(full_width_accuracy.verdict)


def test_nights_together_show_no_drift(accuracy: AccuracyRun, judge: Judge) -> None:
    """This run and all in the ledger: a point that one night cannot prove adds up. ``--nights`` adds this run to it."""
    for verdict in accuracy.objections():
        judge(verdict)
    judge(accuracy.over_nights())
