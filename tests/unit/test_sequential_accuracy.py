from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.check import AccuracyTest, check_accuracy_at_once, with_answers
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.recorded import recorded_runs
from pytest_llminfer.stats import exchangeable
from pytest_llminfer.verdict import Outcome
from tests.support.accuracy_runs import RIGHT, WRONG, answers, go, record, simulated, value
from tests.support.present import present


def test_the_same_answers_pass_early() -> None:
    recorded = record()
    verdict, asked = go(AccuracyTest(recorded), answers(recorded))
    assert (verdict.outcome, asked) == (Outcome.PASS, 224)
    right = sum(name[0] == "r" for name in recorded.order[:224])
    assert verdict.key == f"{100 * right / 224:.1f} %"
    assert (value(verdict, "p-value"), value(verdict, "sequential p-value"), value(verdict, "e-value")) == (1.0, 1.0, 1.0)
    assert value(verdict, "largest drop not ruled out") < 2


def test_a_drop_fails_early_and_names_what_was_lost() -> None:
    recorded = record()
    verdict, asked = go(AccuracyTest(recorded), answers(recorded, lost=20))
    assert (verdict.outcome, asked) == (Outcome.FAIL, 96)
    assert value(verdict, "lost") == 20
    assert value(verdict, "drop") == pytest.approx(100 * 20 / 96)
    # The sign flips, 2^-20, say less than exchangeability with four equal runs, 5^-20.
    assert value(verdict, "p-value") == pytest.approx(0.5**20, rel=1e-6)
    lost = [name for name in recorded.order[:96] if name[0] == "r"][:10]
    assert f"lost: {', '.join(lost)} and 10 more" in str(verdict)
    assert value(verdict, "e-value") > 100


def test_a_large_discordance_is_inconclusive() -> None:
    recorded = record(right=100, flippy=40, wrong=20)
    given = answers(recorded) | {f"f{i}": RIGHT for i in range(20)}
    verdict, asked = go(AccuracyTest(recorded), given)
    assert (verdict.outcome, asked) == (Outcome.INCONCLUSIVE, 160)
    assert "accept a margin of" in verdict.advice


def test_evidence_that_many_cells_do_not_bear_is_never_a_pass() -> None:
    """Seven losses, p = .0078, fail alone. Among twenty cells they do not, and may not pass although a drop of 2 is ruled out."""
    recorded = record(right=1000, wrong=250)
    given = answers(recorded, lost=7)
    alone = AccuracyTest(recorded, looks=1).look(given)
    among = AccuracyTest(recorded, looks=1, cells=20).look(given)
    assert (present(alone).outcome, present(among).outcome) == (Outcome.FAIL, Outcome.INCONCLUSIVE)
    assert value(among, "largest drop not ruled out") < 2
    assert "20 cells together" in present(among).advice
    assert present(AccuracyTest(recorded, looks=1, cells=20).look(answers(recorded, lost=6))).outcome is Outcome.PASS


def test_the_sequential_p_value_says_fail_exactly_where_the_verdict_does() -> None:
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(60):
        recorded = record(right=300, wrong=80)
        given = answers(recorded, lost=int(rng.integers(0, 14)), won=int(rng.integers(0, 5)))
        judge = AccuracyTest(recorded)
        assert judge.p_value == 1.0
        verdict, _ = go(judge, given)
        outcomes.add(verdict.outcome)
        assert (verdict.outcome is Outcome.FAIL) == (judge.p_value <= 0.01)
        assert value(verdict, "sequential p-value") == judge.p_value
    assert outcomes == {Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE}


def test_the_gate_chooses_the_reading() -> None:
    recorded = record()
    unmarked = {name: dataclasses.replace(answer, strict=False) for name, answer in answers(recorded).items()}
    assert go(AccuracyTest(recorded), unmarked)[0].outcome is Outcome.PASS
    assert go(AccuracyTest(recorded, gate="strict"), unmarked)[0].outcome is Outcome.FAIL


@pytest.mark.parametrize("questions", [None, 400, 9, 3])
def test_the_chunks_are_the_looks(questions: int | None) -> None:
    judge = AccuracyTest(record(), questions=questions)
    assert set(judge.chunks) >= set(range(32, questions or 800, 32))
    assert len(judge.order) == judge.chunks[-1]
    assert len(judge.chunks) >= min(8, questions or 800)


def test_looks_may_be_left_out_at_their_price() -> None:
    recorded = record(right=300, wrong=80)
    given = answers(recorded, lost=4)
    judge = AccuracyTest(recorded)
    judge.look(given)
    assert judge.p_value > exchangeable.p_value(exchangeable.tally([4] * 300, 4, [False] * 4 + [True] * 296))


def test_a_number_of_answers_that_is_no_look() -> None:
    judge = AccuracyTest(record())
    given = answers(record())
    with pytest.raises(ValueError, match="99 answers after 0 is none of the looks at 32, 64"):
        judge.look(dict(list(given.items())[:99]))
    assert judge.look(dict(list(given.items())[:96])) is None
    with pytest.raises(ValueError, match="96 answers after 96"):
        judge.look(dict(list(given.items())[:96]))


def test_other_questions_are_invalid() -> None:
    verdict = AccuracyTest(record()).look({f"other{i}": RIGHT for i in range(96)})
    assert present(verdict).outcome is Outcome.INVALID
    assert "96 answers, but none to 96 of the recorded questions" in str(verdict)


@pytest.mark.parametrize("options", [{"questions": 0}, {"looks": 0}, {"cells": 0}])
def test_nothing_to_judge(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing to judge"):
        AccuracyTest(record(), **options)


def test_one_look_at_all() -> None:
    recorded = record()
    assert check_accuracy_at_once(answers=answers(recorded), recorded=recorded).outcome is Outcome.PASS
    few = dict(list(answers(recorded, lost=7).items())[:100])
    verdict = check_accuracy_at_once(answers=few, recorded=recorded)
    assert verdict.outcome is Outcome.FAIL
    assert value(verdict, "sequential p-value") == value(verdict, "p-value") == pytest.approx(0.5**7)
    more = answers(recorded) | {"another": WRONG}
    assert check_accuracy_at_once(answers=more, recorded=recorded).outcome is Outcome.PASS
    del more["r0"]
    assert check_accuracy_at_once(answers=more, recorded=recorded).outcome is Outcome.INVALID
    with pytest.raises(BadInputError, match="no question"):
        check_accuracy_at_once(answers={}, recorded=recorded)


@pytest.mark.parametrize(("drop", "wanted"), [(0.0, Outcome.PASS), (0.05, Outcome.FAIL)])
def test_simulated_runs(drop: float, wanted: Outcome) -> None:
    """Twenty of each; a clean run fails in at most one of a hundred, a drop of five points never passes."""
    rng, seen = np.random.default_rng(17), []
    for _ in range(20):
        recorded, now = simulated(rng, drop)
        seen.append(go(AccuracyTest(recorded), now))
    outcomes = [verdict.outcome for verdict, _ in seen]
    assert outcomes.count(wanted) >= 18
    assert (Outcome.PASS if drop else Outcome.FAIL) not in outcomes
    assert np.mean([asked for _, asked in seen]) < 750


def test_the_verdict_says_what_it_could_have_seen() -> None:
    recorded = record(right=640, flippy=40, wrong=120)
    given = answers(recorded) | {f"f{i}": RIGHT for i in range(20)}
    verdict, asked = go(AccuracyTest(recorded, margin=0.04), given)
    assert verdict.outcome is Outcome.PASS
    assert f"80 % power at n={asked:,} and {recorded.self_discordance:.1%} discordance" in verdict.smallest_detectable
    assert math.isfinite(value(verdict, "drop"))
    assert "of 800" in str(next(entry for entry in verdict.measurements if entry.name == "questions asked"))


def test_both_readings_stand_in_every_verdict() -> None:
    recorded = record()
    given = {name: dataclasses.replace(answer, strict=answer.strict and name != "r0") for name, answer in answers(recorded).items()}
    for lost in (0, 20):
        verdict, asked = go(AccuracyTest(recorded), given | answers(recorded, lost=lost) if lost else given)
        flexible, strict = (value(verdict, f"right by the {gate} reading") for gate in ("flexible", "strict"))
        assert flexible == value(verdict, "accuracy now")
        assert flexible - strict == pytest.approx(100 / asked if not lost and "r0" in recorded.order[:asked] else 0.0)


def test_where_right_answers_stand_before_other_numbers_the_strict_reading_counts() -> None:
    """By the last number a fifth of the right answers would count as wrong, and their loss would not show."""
    after = Answer(strict=True, flexible=False, tokens=100)
    runs = [{f"q{n}": after if n % 5 == 0 else RIGHT for n in range(500)}] * 4
    recorded = recorded_runs(runs, seed=1)
    assert recorded.gate == "strict"
    given: dict[str, Answer] = {**runs[0], **{f"q{n}": WRONG for n in range(0, 500, 5)}}
    assert go(AccuracyTest(recorded, gate=recorded.gate), given)[0].outcome is Outcome.FAIL
    assert recorded_runs([{f"q{n}": RIGHT for n in range(500)}], seed=1).gate == "flexible"


def test_a_failure_says_where_the_answers_are() -> None:
    recorded = record()
    verdict, _ = go(AccuracyTest(recorded), answers(recorded, lost=20))
    assert verdict.advice.startswith("read the answers to the lost questions")
    assert with_answers(verdict, "found/answers.jsonl").advice.endswith("; the answers are in found/answers.jsonl")
    assert "--llminfer-report=DIR keeps the answers" in with_answers(verdict, "").advice
    passed, _ = go(AccuracyTest(recorded), answers(recorded))
    assert with_answers(passed, "found/answers.jsonl") == passed


def test_runs_ask_in_orders_of_their_own() -> None:
    recorded = record()
    first, again, other = (recorded.shuffled(seed).order for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(first) == sorted(other) == sorted(recorded.flexible)
