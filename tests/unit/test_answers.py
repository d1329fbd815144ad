from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pytest_llminfer.families.accuracy.answers import check_flips, check_format, check_length, check_truncation
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.recorded import Recorded, recorded_runs
from pytest_llminfer.verdict import Outcome, Verdict

RIGHT = Answer(strict=True, flexible=True, tokens=100)
BAD = {
    check_truncation: dataclasses.replace(RIGHT, truncated=True),
    check_format: dataclasses.replace(RIGHT, format_miss=True, strict=False),
}
GATES = list(BAD)


def questions(n: int, bad: int = 0, answer: Answer = RIGHT) -> dict[Any, Any]:
    return {f"q{number}": answer if number < bad else RIGHT for number in range(n)}


def record(n: int = 1000, bad: int = 0, answer: Answer = RIGHT, runs: int = 4) -> Recorded:
    return recorded_runs([questions(n, bad, answer)] * runs, seed=1)


@pytest.mark.parametrize("check", GATES)
@pytest.mark.parametrize("runs", [1, 4])
@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        (0, 0, Outcome.PASS),
        (0, 1, Outcome.PASS),
        (0, 9, Outcome.PASS),  # significant with four runs, but below one point
        (0, 30, Outcome.INVALID),
        (50, 50, Outcome.PASS),
        (50, 80, Outcome.INVALID),
        (50, 0, Outcome.PASS),
    ],
)
def test_a_rise_makes_the_comparison_invalid(
    check: Callable[..., Verdict], runs: int, before: int, now: int, outcome: Outcome
) -> None:
    verdict = check(answers=questions(1000, now, BAD[check]), recorded=record(1000, before, BAD[check], runs))
    assert verdict.outcome is outcome
    assert verdict.key == f"{now / 10:.1f} %"


@pytest.mark.parametrize("check", GATES)
def test_one_of_few_answers_does_not_trip_it(check: Callable[..., Verdict]) -> None:
    assert check(answers=questions(8, 1, BAD[check]), recorded=record(8)).outcome is Outcome.PASS
    assert check(answers=questions(8, 8, BAD[check]), recorded=record(8)).outcome is Outcome.INVALID


@pytest.mark.parametrize("check", GATES)
def test_part_of_the_questions_and_what_is_said(check: Callable[..., Verdict]) -> None:
    verdict = check(answers=questions(200, 20, BAD[check]), recorded=record())
    assert verdict.outcome is Outcome.INVALID
    assert "not so in most recorded runs: q0, q1, q2" in str(verdict)
    assert "80 % power at n=200" in verdict.smallest_detectable
    assert verdict.advice


@pytest.mark.parametrize("check", GATES)
def test_each_gate_looks_at_its_own_fault(check: Callable[..., Verdict]) -> None:
    other = next(answer for gate, answer in BAD.items() if gate is not check)
    assert check(answers=questions(1000, 500, other), recorded=record()).outcome is Outcome.PASS


@pytest.mark.parametrize("check", [*GATES, check_length, check_flips])
def test_nothing_to_compare(check: Callable[..., Verdict]) -> None:
    for given in ({}, {"other": RIGHT}):
        verdict = check(answers=given, recorded=record())
        assert (verdict.outcome, verdict.key) == (Outcome.INVALID, "no comparison")


def lengths(tokens: int, n: int = 1000) -> dict[Any, Any]:
    return {f"q{number}": dataclasses.replace(RIGHT, tokens=tokens) for number in range(n)}


@pytest.mark.parametrize(
    ("tokens", "outcome"),
    [(100, Outcome.PASS), (91, Outcome.PASS), (109, Outcome.PASS), (89, Outcome.INVALID), (111, Outcome.INVALID)],
)
def test_the_length_of_answers(tokens: int, outcome: Outcome) -> None:
    assert check_length(answers=lengths(tokens), recorded=record()).outcome is outcome


def test_the_length_over_part_of_the_questions_may_stray_by_its_error() -> None:
    """Half of the answers have 40 tokens, half 160: a hundred of them say little about a thousand."""
    mixed = {f"q{number}": dataclasses.replace(RIGHT, tokens=160 if number % 2 else 40) for number in range(1000)}
    recorded = recorded_runs([mixed] * 2, seed=1)
    skewed = {name: answer for name, answer in list(mixed.items())[:160] if answer.tokens == 160 or int(name[1:]) < 80}
    verdict = check_length(answers=skewed, recorded=recorded)
    assert verdict.outcome is Outcome.PASS
    ratio = next(entry for entry in verdict.measurements if entry.name == "ratio")
    assert ratio.value == pytest.approx(1.2)
    assert "120 of 1,000 questions were asked" in ratio.spread
    assert check_length(answers=dict(list(lengths(150).items())[:160]), recorded=recorded).outcome is Outcome.INVALID


def test_answers_without_a_token_count() -> None:
    uncounted = lengths(0)
    assert check_length(answers=uncounted, recorded=record()).outcome is Outcome.INCONCLUSIVE
    assert check_length(answers=lengths(100), recorded=recorded_runs([uncounted], seed=1)).outcome is Outcome.INCONCLUSIVE


def mixed_runs() -> Any:
    """Four runs that differ in 3 % of the questions between any two: 45 of 1,000 are right in two of the four."""
    wrong = dataclasses.replace(RIGHT, strict=False, flexible=False)
    runs = [{f"q{n}": wrong if (n < 45 and (n + run) % 2) or n >= 800 else RIGHT for n in range(1000)} for run in range(4)]
    return runs, wrong


def test_flips_are_a_warning() -> None:
    runs, wrong = mixed_runs()
    recorded = recorded_runs(runs, seed=1)
    assert recorded.self_discordance == pytest.approx(0.03)
    verdict = check_flips(answers=runs[0], recorded=recorded)
    assert (verdict.outcome, verdict.key) == (Outcome.PASS, "0 flips")  # a tie among the recorded runs is none
    flipped = runs[0] | {f"q{n}": wrong for n in range(100, 130)} | {f"q{n}": RIGHT for n in range(900, 930)}
    verdict = check_flips(answers=flipped, recorded=recorded)
    assert (verdict.outcome, verdict.key) == (Outcome.INCONCLUSIVE, "60 flips")
    assert "flipped: q100, q101" in str(verdict)


def test_the_limit_of_flips_is_the_one_named() -> None:
    runs, wrong = mixed_runs()
    recorded = recorded_runs(runs, seed=1)
    limit = int(check_flips(answers=runs[0], recorded=recorded).smallest_detectable.split()[0])
    for flips, outcome in ((limit - 1, Outcome.PASS), (limit, Outcome.INCONCLUSIVE)):
        changed = runs[0] | {f"q{n}": wrong for n in range(100, 100 + flips)}
        assert check_flips(answers=changed, recorded=recorded).outcome is outcome


def test_flips_of_a_harmless_change_are_no_warning_beside_runs_that_are_copies() -> None:
    """Another kernel decides near ties the other way; four equal runs say nothing of how many that may be."""
    runs, wrong = mixed_runs()
    copies = recorded_runs([runs[0]] * 4, seed=1)
    for flips, outcome in ((12, Outcome.PASS), (21, Outcome.PASS), (22, Outcome.INCONCLUSIVE)):
        lost = {f"q{n}": wrong for n in range(100, 100 + (flips + 1) // 2)}
        won = {f"q{n}": RIGHT for n in range(900, 900 + flips // 2)}
        verdict = check_flips(answers=runs[0] | lost | won, recorded=copies)
        assert (verdict.outcome, verdict.key) == (outcome, f"{flips} flips")
    assert "nearly copies" in str(verdict)
    assert verdict.smallest_detectable.startswith("22 flips")


def test_flips_with_one_run_are_judged_by_the_planned_discordance() -> None:
    runs, _ = mixed_runs()
    verdict = check_flips(answers=runs[1], recorded=recorded_runs(runs[:1], seed=1))
    assert verdict.outcome is Outcome.PASS
    assert "planned for: one run cannot tell" in str(verdict)
