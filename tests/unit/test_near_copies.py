"""A record of runs that are copies of each other: a harmless change must not be held to their lack of noise; a drop must."""

from __future__ import annotations

import random

import pytest

from pytest_llminfer.errors import BaselineError
from pytest_llminfer.families.accuracy.check import AccuracyTest, check_accuracy_at_once
from pytest_llminfer.families.accuracy.drift import check_drift
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.recorded import Recorded, recorded_runs
from pytest_llminfer.stats.evalues import log_e_of_pairs
from pytest_llminfer.verdict import Outcome
from tests.support.present import present

N, RIGHT = 1000, 900
IDS = [f"q{number}" for number in range(N)]


def answers(wrong: frozenset[int] | set[int] = frozenset(), right: frozenset[int] | set[int] = frozenset()) -> dict[str, Answer]:
    """The first 900 questions right, but for those in ``wrong``; the others wrong, but for those in ``right``."""
    outcomes = [(number < RIGHT and number not in wrong) or number in right for number in range(N)]
    return {name: Answer(strict=ok, flexible=ok, tokens=50) for name, ok in zip(IDS, outcomes, strict=True)}


@pytest.fixture(scope="module")
def copies() -> Recorded:
    return recorded_runs([answers()] * 4, seed=1)


def past_run(recorded: Recorded, given: dict[str, Answer]) -> str:
    return "".join("1" if given[name].flexible else "0" for name in recorded.flexible)


def test_a_few_ties_lost_by_chance_are_no_failure(copies: Recorded) -> None:
    verdict = check_accuracy_at_once(answers=answers(wrong={1, 2, 3}), recorded=copies)
    assert verdict.outcome is Outcome.PASS
    assert "sign flips" in verdict.threshold_source


def test_symmetric_changes_seldom_fail(copies: Recorded) -> None:
    drawn = random.Random(7)
    failures = 0
    for _ in range(300):
        lost = sum(drawn.random() < 0.5 for _ in range(drawn.randint(3, 12)))
        changed = answers(wrong=set(range(lost)), right=set(range(RIGHT, RIGHT + drawn.randint(0, 1) + 12 - lost)))
        test = AccuracyTest(copies)
        verdict = None
        for count in test.chunks:
            verdict = test.look({name: changed[name] for name in test.order[:count]})
            if verdict:
                break
        failures += present(verdict).outcome is Outcome.FAIL
    assert failures <= 3


def test_a_drop_is_still_a_failure(copies: Recorded) -> None:
    assert check_accuracy_at_once(answers=answers(wrong=set(range(20))), recorded=copies).outcome is Outcome.FAIL


def test_an_answer_lost_for_good_counts_once_however_many_runs(copies: Recorded) -> None:
    few, many = answers(wrong={1, 2, 3}), answers(wrong=set(range(25)))
    assert check_drift(recorded=copies, past_runs=[past_run(copies, few)] * 30).outcome is Outcome.PASS
    assert check_drift(recorded=copies, past_runs=[past_run(copies, many)] * 4).outcome is Outcome.FAIL


@pytest.mark.parametrize("runs", [1, 2, 4])
@pytest.mark.parametrize(("lost", "won"), [(6, 1), (8, 3), (12, 6)])
def test_another_kernel_is_no_drift_of_an_engine_that_repeats_itself(runs: int, lost: int, won: int) -> None:
    """Near ties that a harmless change decides the other way, every past run from then on."""
    recorded = recorded_runs([answers()] * runs, seed=1)
    changed = answers(wrong=set(range(lost)), right=set(range(RIGHT, RIGHT + won)))
    for past_runs in (4, 16, 32, 64):
        assert check_drift(recorded=recorded, past_runs=[past_run(recorded, changed)] * past_runs).outcome is Outcome.PASS


def test_one_recorded_run_still_proves_what_is_lost_for_good() -> None:
    recorded = recorded_runs([answers()], seed=1)
    verdict = check_drift(recorded=recorded, past_runs=[past_run(recorded, answers(wrong=set(range(25))))] * 4)
    assert present(verdict).outcome is Outcome.FAIL
    assert "25 questions lost and 0 won for good" in str(verdict)


def test_a_night_of_other_questions_is_refused(copies: Recorded) -> None:
    with pytest.raises(BaselineError, match="for each of 1,000 questions"):
        check_drift(recorded=copies, past_runs=["11"])


def test_pairs_are_the_evidence_of_one_run_beside_one() -> None:
    # 2^5 B(7, 1) I_1/2(1, 7) / (B(2, 1) I_1/2(1, 2)), by SciPy.
    from scipy.special import betainc, betaln

    expected = 5 * 0.6931471805599453 + betaln(7, 1) - betaln(2, 1)
    import math

    expected += math.log(betainc(1, 7, 0.5)) - math.log(betainc(1, 2, 0.5))
    assert log_e_of_pairs(5, 0) == pytest.approx(expected, abs=1e-3)
