"""Accuracy: as many questions answered right as in the recorded run, question by question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_llminfer.checks.accuracy import check_accuracy, check_answers_well_formed

if TYPE_CHECKING:
    from pytest_llminfer.answering import Answered, QuestionSet
    from pytest_llminfer.engines.engine import Engine
    from pytest_llminfer.judging import Judge
    from pytest_llminfer.recording import Baseline


def test_accuracy_has_not_dropped(engine: Engine, gsm8k: QuestionSet, answered: Answered, baseline: Baseline, judge: Judge) -> None:
    """The flexible reading (last number) gates; strict (``####``), format misses and cut-off answers are shown beside it."""
    expected = baseline.expected(
        "gsm8k",
        observed=lambda previous: gsm8k.record(engine, previous),
        conditions=gsm8k.conditions(engine),
        n=lambda record: record["questions"],
    )
    answers = answered.answers
    recorded = gsm8k.unpack(expected, list(answers))
    judge(check_accuracy(answers=answers, baseline=recorded))
    judge(check_answers_well_formed(answers=answers, baseline=recorded))
