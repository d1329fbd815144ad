from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llminfer.checks.accuracy import Answer, check_accuracy, check_answers_well_formed
from pytest_llminfer.verdict import Outcome

RIGHT, WRONG = Answer(strict=True, flexible=True), Answer(strict=False, flexible=False)
UNMARKED = Answer(strict=False, flexible=True, format_miss=True)
CUT = Answer(strict=False, flexible=False, format_miss=True, truncated=True)


def runs(n=1000, right=800, lost=0, won=0, new=WRONG):
    """Baseline and run: the first ``right`` are right in the baseline; the first lost and the last won change sides."""
    baseline = {f"q{number}": RIGHT if number < right else WRONG for number in range(n)}
    answers = dict(baseline)
    answers |= {f"q{number}": new for number in range(lost)}
    answers |= {f"q{number}": RIGHT for number in range(n - won, n)}
    return {"answers": answers, "baseline": baseline}


def value(verdict, name):
    return next(entry for entry in verdict.measurements if entry.name == name)


def test_the_same_answers_pass():
    verdict = check_accuracy(**runs())
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "80.0 %")
    assert value(verdict, "p-value").value == 1.0
    assert verdict.details == ("accuracy went from 800 to 800 of 1,000 (+0.00 points)",)


@pytest.mark.parametrize(
    ("lost", "won", "outcome"),
    [
        (0, 0, Outcome.PASS),
        (2, 1, Outcome.PASS),  # 1 % discordance
        (1, 2, Outcome.PASS),
        (0, 3, Outcome.PASS),
        (3, 0, Outcome.INCONCLUSIVE),  # a drop of 2.5 points is not ruled out
        (6, 0, Outcome.INCONCLUSIVE),
        (7, 0, Outcome.FAIL),
        (0, 60, Outcome.PASS),
    ],
)
def test_three_hundred_questions(lost, won, outcome):
    assert check_accuracy(**runs(300, 240, lost, won)).outcome is outcome


@pytest.mark.parametrize(("lost", "won", "outcome"), [(20, 20, Outcome.PASS), (40, 14, Outcome.FAIL), (21, 4, Outcome.FAIL)])
def test_the_whole_of_gsm8k(lost, won, outcome):
    assert check_accuracy(**runs(1319, 1055, lost, won)).outcome is outcome


@given(lost=st.integers(0, 100), won=st.integers(0, 100))
def test_more_wins_than_losses_never_fail(lost, won):
    verdict = check_accuracy(**runs(500, 300, lost, won))
    if won >= lost:
        assert verdict.outcome in (Outcome.PASS, Outcome.INCONCLUSIVE)
    if won == 0 and lost >= 7:
        assert verdict.outcome is Outcome.FAIL


@given(won=st.integers(0, 200))
def test_an_improvement_alone_always_passes(won):
    assert check_accuracy(**runs(500, 300, 0, won)).outcome is Outcome.PASS


def test_a_clean_run_hardly_ever_fails():
    rng, outcomes = random.Random(2), []
    for _ in range(400):
        changes = [rng.random() for _ in range(1319)]
        lost, won = sum(draw < 0.015 for draw in changes), sum(0.015 <= draw < 0.03 for draw in changes)
        outcomes.append(check_accuracy(**runs(1319, 1055, lost, won)).outcome)
    assert outcomes.count(Outcome.FAIL) <= 8
    assert outcomes.count(Outcome.PASS) >= 0.97 * len(outcomes)


def test_a_three_point_drop_hardly_ever_passes():
    rng, outcomes = random.Random(4), []
    for _ in range(300):
        changes = [rng.random() for _ in range(1319)]
        lost, won = sum(draw < 0.045 for draw in changes), sum(0.045 <= draw < 0.06 for draw in changes)
        outcomes.append(check_accuracy(**runs(1319, 1055, lost, won)).outcome)
    assert outcomes.count(Outcome.FAIL) >= 0.95 * len(outcomes)
    assert outcomes.count(Outcome.PASS) <= 0.01 * len(outcomes)


def test_a_failure_names_what_was_lost_and_by_how_much():
    verdict = check_accuracy(**runs(1000, 800, 30, 2))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.details[0] == "accuracy went from 800 to 772 of 1,000 (-2.80 points)"
    assert verdict.details[1] == "lost: q0, q1, q2, q3, q4, q5, q6, q7, q8, q9 and 20 more"
    assert (value(verdict, "lost").value, value(verdict, "won").value) == (30, 2)
    assert value(verdict, "accuracy now").spread.startswith("95 % interval 7")
    assert "80 % power at n=1,000 and 3.2% discordance" in verdict.smallest_detectable
    assert "record a new baseline" in str(verdict)


def test_too_few_questions_are_inconclusive_and_say_how_many_are_needed():
    verdict = check_accuracy(**runs(50, 40, 1, 1))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "questions or more" in verdict.advice


def test_the_margin_decides_how_many_are_too_few():
    assert check_accuracy(**runs(100, 80, 1, 1)).outcome is Outcome.INCONCLUSIVE
    assert check_accuracy(**runs(100, 80, 1, 1), margin=0.06).outcome is Outcome.PASS


def test_alpha_is_the_callers():
    assert check_accuracy(**runs(300, 240, 5, 0), alpha=0.05).outcome is Outcome.FAIL


def test_each_gate_reads_its_own_column():
    unmarked = runs(1000, 800, 400, 0, new=UNMARKED)
    assert check_accuracy(**unmarked).outcome is Outcome.PASS
    verdict = check_accuracy(**unmarked, gate="strict")
    assert (verdict.outcome, verdict.key) == (Outcome.FAIL, "40.0 %")
    assert value(verdict, "format misses").value == 400
    assert value(verdict, "format misses").spread == "before: 0"


@pytest.mark.parametrize("broken", [UNMARKED, CUT])
def test_answers_that_lose_their_form_fail(broken):
    assert check_answers_well_formed(**runs(1000, 800, 30, 0, new=broken)).outcome is Outcome.FAIL
    assert check_answers_well_formed(**runs(1000, 800, 30, 0, new=WRONG)).outcome is Outcome.PASS


def test_no_questions_is_a_failure():
    verdict = check_accuracy(answers={}, baseline={})
    assert verdict.outcome is Outcome.FAIL
    assert "no question was answered" in str(verdict)
    assert check_answers_well_formed(answers={}, baseline={"a": RIGHT}).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("answers", "baseline", "said"),
    [
        ({"a": RIGHT}, {"a": RIGHT, "b": RIGHT}, "1 only in the baseline: b"),
        ({"a": RIGHT, "b": RIGHT}, {"a": RIGHT}, "1 only now: b"),
        ({"a": RIGHT}, {}, "1 only now: a"),
        (
            {f"n{number}": RIGHT for number in range(12)},
            {"a": RIGHT},
            "12 only now: n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 and 2 more",
        ),
    ],
)
def test_other_questions_are_an_unfair_comparison(answers, baseline, said):
    verdict = check_accuracy(answers=answers, baseline=baseline)
    assert verdict.outcome is Outcome.INVALID
    assert said in verdict.details


def test_the_order_of_questions_does_not_matter():
    both = runs(300, 240, 7, 0)
    shuffled = dict(sorted(both["answers"].items(), reverse=True))
    assert check_accuracy(answers=shuffled, baseline=both["baseline"]).outcome is Outcome.FAIL
