from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, cast

import numpy as np
import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.check import AccuracyTest, check_accuracy_at_once, with_answers
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.margin import plan_margin, supported_margin
from pytest_llminfer.families.accuracy.record import pack, unpack
from pytest_llminfer.families.accuracy.recorded import Recorded, recorded_runs
from pytest_llminfer.stats import betting, exchangeable, sequential, sign_flips
from pytest_llminfer.verdict import Outcome
from tests.support.paths import BASELINES
from tests.support.present import present

RIGHT, WRONG = Answer(strict=True, flexible=True, tokens=100), Answer(strict=False, flexible=False, tokens=100)


def record(right: int = 640, flippy: int = 0, wrong: int = 160, runs: int = 4) -> Recorded:
    """``right`` questions always right, ``flippy`` right in half of the runs, ``wrong`` never; in an order drawn at random."""
    counts = (
        {f"r{i}": runs for i in range(right)} | {f"f{i}": runs // 2 for i in range(flippy)} | {f"w{i}": 0 for i in range(wrong)}
    )
    discordance = exchangeable.self_discordance(list(counts.values()), runs) if runs > 1 else None
    none = dict.fromkeys(counts, 0)
    return Recorded(runs, counts, counts, none, none, 100.0, discordance, sequential.shuffled(list(counts), 1))


def answers(recorded: Recorded, lost: int = 0, won: int = 0) -> dict[str, Answer]:
    """As recorded, but for the first ``lost`` right questions of the order and the first ``won`` wrong ones."""
    given, left = {}, {"r": lost, "w": won}
    for name in recorded.order:
        changed = left.get(name[0], 0) > 0
        left[name[0]] = left.get(name[0], 0) - 1
        given[name] = RIGHT if (name[0] == "r") != changed else WRONG
    return given


def go(judge: AccuracyTest, given: Any) -> Any:
    """The verdict, and how many questions it took."""
    for upto in judge.chunks:
        verdict = judge.look({name: given[name] for name in judge.order[:upto]})
        if verdict:
            return verdict, upto
    raise AssertionError("no verdict at the last look")


def value(verdict: Any, name: str) -> Any:
    return next(entry for entry in verdict.measurements if entry.name == name).value


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


def test_a_margin_that_cannot_be_supported_is_refused_with_the_one_that_can() -> None:
    recorded = record(right=700, flippy=80, wrong=220)
    smallest = betting.smallest_margin(1000, 4, present(recorded.self_discordance))
    assert plan_margin(recorded, smallest) == smallest
    with pytest.raises(BadInputError, match="cannot be told from noise") as caught:
        plan_margin(recorded, 0.01)
    text = str(caught.value)
    assert "a margin of 1 points cannot be told from noise with 1,000 questions, 4 recorded runs and 5.3% discordance" in text
    offered = float(text.partition("the smallest that can: ")[2].split(" points")[0]) / 100
    assert plan_margin(recorded, offered) == offered
    assert offered - smallest < 1e-4


@pytest.mark.parametrize("n", [100, 120, 150, 200])
def test_the_margin_that_is_offered_is_one_at_which_an_equal_run_passes(n: int) -> None:
    recorded = record(right=n - n // 5, wrong=n // 5)
    with pytest.raises(BadInputError, match="the smallest that can: ") as caught:
        plan_margin(recorded, 0.02)
    assert "at least 1% is planned for" in str(caught.value)
    assert go(AccuracyTest(recorded, margin=0.02), answers(recorded))[0].outcome is not Outcome.FAIL
    offered = float(str(caught.value).partition("the smallest that can: ")[2].split(" points")[0]) / 100
    assert plan_margin(recorded, offered) == offered
    assert go(AccuracyTest(recorded, margin=offered), answers(recorded))[0].outcome is Outcome.PASS


def test_a_margin_that_nobody_chose_is_widened_to_what_the_record_supports() -> None:
    assert supported_margin(record(right=800, wrong=200), 0.02) == 0.02
    few = record(right=240, wrong=60)
    assert supported_margin(few, 0.02) == 0.03 == math.ceil(1000 * betting.smallest_margin(300, 4, 0.0)) / 1000
    assert supported_margin(few, 0.06) == 0.06
    assert supported_margin(record(right=10, wrong=6), 0.02) == 0.05  # no further


@pytest.mark.parametrize(("n", "share"), [(300, 0.01), (300, 0.03), (1319, 0.03)])
def test_clean_runs_pass_at_the_smallest_margin(n: int, share: float) -> None:
    """120 of each, of which 97 % are to pass: 111 or fewer come in 3 of 1000 series."""
    rng, passed = np.random.default_rng(3), 0
    for _ in range(120):
        recorded, now = simulated(rng, 0.0, n, flippy=3 * share)
        margin = betting.smallest_margin(n, 4, recorded.self_discordance)
        passed += go(AccuracyTest(recorded, margin=margin), now)[0].outcome is Outcome.PASS
    assert passed > 111


def test_a_record_that_shows_nothing_is_refused() -> None:
    assert plan_margin(record(right=100, wrong=700), 0.02) == 0.02
    with pytest.raises(BadInputError, match=r"^0\.0% of 800 questions are answered right: no drop of 40 points, .*recorded$"):
        plan_margin(record(right=0, wrong=800), 0.4)
    few = record(right=10, wrong=790)
    with pytest.raises(BadInputError, match=r"1\.2% of 800 questions .* no drop of 2 points"):
        plan_margin(few, 0.02)
    for field, words in (("truncated", "cut off at the token limit"), ("format_misses", "without '#### <number>'")):
        recorded = record()
        most = {name: 4 * (number <= 400) for number, name in enumerate(recorded.flexible)}
        assert plan_margin(dataclasses.replace(recorded, **cast("Any", {field: most | {"r0": 0}})), 0.02) == 0.02
        with pytest.raises(BadInputError, match=f"^50.1% of the answers are {words}"):
            plan_margin(dataclasses.replace(recorded, **cast("Any", {field: most})), 0.02)


def test_no_power_is_claimed_where_less_was_right() -> None:
    recorded = record(right=8, wrong=792)
    verdict, _ = go(AccuracyTest(recorded, margin=0.4), answers(recorded))
    assert verdict.smallest_detectable.startswith("none: only 3.1 % were right in the recorded runs, and it takes a drop of ")


def test_one_run_plans_for_three_percent() -> None:
    recorded = record(runs=1)
    smallest = betting.smallest_margin(800, 1, 0.03)
    assert plan_margin(recorded, smallest) == smallest
    with pytest.raises(BadInputError, match="planned for: one run cannot tell"):
        plan_margin(recorded, smallest - 1e-4)
    with pytest.raises(BadInputError, match="with 100 questions"):
        plan_margin(recorded, smallest, questions=100)


def test_runs_become_a_record() -> None:
    runs = [
        {"a": RIGHT, "b": WRONG, "c": Answer(strict=False, flexible=True, format_miss=True, tokens=50)},
        {"a": RIGHT, "b": RIGHT, "c": Answer(strict=False, flexible=False, truncated=True, tokens=150)},
    ]
    recorded = recorded_runs(runs, seed=3)
    assert (recorded.runs, recorded.flexible) == (2, {"a": 2, "b": 1, "c": 1})
    assert recorded.strict == {"a": 2, "b": 1, "c": 0}
    assert (recorded.format_misses["c"], recorded.truncated["c"], recorded.truncated["a"]) == (1, 1, 0)
    assert recorded.mean_tokens == 100
    assert recorded.self_discordance == recorded.discordance("flexible") == pytest.approx(2 / 3)
    assert recorded.discordance("strict") == pytest.approx(1 / 3)
    assert sorted(recorded.order) == ["a", "b", "c"]
    assert recorded_runs(runs[:1], seed=3).discordance("strict") is None
    with pytest.raises(ValueError, match="same questions"):
        recorded_runs([runs[0], {"a": RIGHT}], seed=3)
    with pytest.raises(ValueError, match="needs a run"):
        recorded_runs([], seed=3)


def simulated(rng: Any, drop: float, n: int = 1319, flippy: float = 0.09) -> Any:
    level = np.where(rng.random(n) < flippy, rng.random(n), rng.random(n) < 0.83)
    runs = [
        dict(zip(map(str, range(n)), [RIGHT if right else WRONG for right in rng.random(n) < level], strict=True)) for _ in range(4)
    ]
    fallen = np.where((level == 1) & (rng.random(n) < drop / 0.755), 0.0, level)
    now = dict(zip(map(str, range(n)), [RIGHT if right else WRONG for right in rng.random(n) < fallen], strict=True))
    return recorded_runs(runs, seed=1), now


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


def test_records_of_older_rules_are_still_read() -> None:
    """What they say that they can show is what the rule of their time came to; the margin of a test is computed anew."""
    entries = json.loads((BASELINES / "any" / "reference" / "gsm8k.json").read_text())["entries"]
    assert len(entries) >= 9
    for name, entry in entries.items():
        stored = entry["expected"]
        ids = [str(number) for number in range(stored["questions"])]
        recorded = unpack(stored, ids)
        assert sorted(recorded.order) == sorted(ids), name
        assert supported_margin(recorded, 0.02) == (0.02 if stored["questions"] == 1000 else 0.03), name
        assert 0 < stored["smallest_margin"] < 0.03


def test_a_new_record_says_what_it_can_show() -> None:
    runs = [{f"q{n}": RIGHT if n < 240 or (n + run) % 4 == 0 else WRONG for n in range(300)} for run in range(4)]
    packed = pack(list(runs[0]), runs)
    margin = betting.smallest_margin(300, 4, packed["self_discordance"])
    assert margin <= packed["smallest_margin"] < margin + 2e-6
    drop = sign_flips.smallest_detectable_drop(300, 4, packed["self_discordance"])
    assert packed["smallest_detectable_drop"] == pytest.approx(drop, abs=1e-6)


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
