from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import betainc, betaln

from pytest_llminfer.stats import evalues, exchangeable


@settings(deadline=None)
@given(lost=st.integers(0, 300), won=st.integers(0, 300))
def test_one_run_has_the_e_value_of_methods(lost: int, won: int) -> None:
    half = betaln(lost + 2, won + 1) + math.log(betainc(won + 1, lost + 2, 0.5))
    expected = (lost + won) * math.log(2) + half - betaln(2, 1) - math.log(betainc(1, 2, 0.5))
    assert evalues.log_e(exchangeable.from_counts([0, lost], [won, 5])) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("by_level", [([0, 1, 2, 3, 9], [50, 1, 1, 1, 600]), ([0, 9, 8, 7, 0], [50, 9, 9, 9, 600])])
def test_four_runs_have_the_integral_over_the_tilt(by_level: tuple[list[int], list[int]]) -> None:
    counts = exchangeable.from_counts(*by_level)

    def likelihood_ratio(q: Any) -> Any:
        theta = q / (1 - q)
        shrunk = math.prod(((w * theta + 5 - w) / 5) ** -counts.by_wrong[w] for w in range(1, 5))
        return theta**counts.wrong_now * shrunk * q / 0.375

    expected, _ = integrate.quad(likelihood_ratio, 0.5, 1 - 1e-12, epsabs=0, epsrel=1e-10, limit=500)
    assert evalues.log_e(counts) == pytest.approx(math.log(expected), abs=1e-7)


@pytest.mark.parametrize(("runs", "past_runs"), [(1, 1), (4, 1), (2, 3), (4, 2)])
def test_the_mean_is_one_over_all_ways_in_which_the_wrong_answers_fall(runs: int, past_runs: int) -> None:
    wrong = (1, 2, runs + past_runs - 1, 1)
    total = 0.0
    spans = [range(max(0, w - runs), min(past_runs, w) + 1) for w in wrong]
    for new in itertools.product(*spans):
        chance = math.prod(stats.hypergeom.pmf(x, runs + past_runs, w, past_runs) for x, w in zip(new, wrong, strict=True))
        before = [runs - (w - x) for x, w in zip(new, wrong, strict=True)]
        total += chance * math.exp(evalues.pooled_log_e(before, runs, [past_runs] * 4, [past_runs - x for x in new]))
    assert total == pytest.approx(1, rel=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=60))
def test_one_night_pooled_is_the_night_itself(outcomes: list[tuple[int, bool]]) -> None:
    before, now = [count for count, _ in outcomes], [right for _, right in outcomes]
    alone = evalues.log_e(exchangeable.tally(before, 4, now))
    assert evalues.pooled_log_e(before, 4, [1] * len(now), [int(right) for right in now]) == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("past_runs", [1, 4, 24])
def test_questions_that_change_for_good_are_evidence_only_on_balance(past_runs: int) -> None:
    """Another kernel loses 20 questions and wins 20, every past run the same ones; a fault loses 20 and wins 4."""

    def of(lost: int, won: int) -> float:
        right = [0] * lost + [past_runs] * won
        return evalues.pooled_log_e([4] * lost + [0] * won, 4, [past_runs] * len(right), right)

    assert of(20, 20) < 0
    assert of(20, 4) > evalues.log_e_needed(len(evalues.judged_runs(past_runs)), 0.01)


def test_nothing_changed_is_no_evidence() -> None:
    assert evalues.log_e(exchangeable.tally([4, 0], 4, [True, False])) == 0.0
    assert evalues.pooled_log_e([4, 0, 2], 4, [3, 3, 0], [3, 0, 0]) == 0.0


def test_losses_raise_it_and_wins_lower_it() -> None:
    def of(lost: int, won: int) -> float:
        return evalues.log_e(exchangeable.from_counts([0, 0, 0, 0, lost], [won, 0, 0, 0, 100]))

    assert of(8, 0) > of(4, 0) > 0 > of(4, 4) > of(0, 8)


def test_impossible_counts() -> None:
    with pytest.raises(ValueError, match="impossible"):
        evalues.pooled_log_e([5], 4, [1], [1])
    with pytest.raises(ValueError, match="impossible"):
        evalues.pooled_log_e([4], 4, [1], [2])


def test_judged_runs_and_their_shares() -> None:
    assert evalues.judged_runs(100) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
    assert evalues.judged_runs(5) == (1, 2, 3, 4)
    shares = [math.exp(-evalues.log_e_needed(number, 0.01)) for number in range(1, 100_000)]
    assert math.fsum(shares) == pytest.approx(0.01, rel=1e-4)
    assert math.fsum(shares) < 0.01


def past_runs_of(seed: Any, drop: float, count: int = 8, questions: int = 1319) -> Any:
    rng = np.random.default_rng(seed)
    level = np.where(rng.random(questions) < 0.09, rng.random(questions), rng.random(questions) < 0.83)
    record = rng.binomial(4, level).tolist()
    fallen = np.where((level == 1) & (rng.random(questions) < drop / 0.755), 0.0, level)
    return record, [(rng.random(questions) < fallen).tolist() for _ in range(count)]


@pytest.mark.parametrize("seed", range(3))
def test_a_drift_of_two_points_is_proven_and_stays_so(seed: Any) -> None:
    record, past_runs = past_runs_of(seed, 0.02)
    found = evalues.drift_verdict(record, 4, past_runs)
    assert found.proven_at in (1, 2, 3, 4)
    assert found.judged_at == (1, 2, 3, 4, 6, 8)
    assert evalues.drift_verdict(record, 4, past_runs[: found.proven_at]).proven_at == found.proven_at
    assert evalues.drift_verdict(record, 4, past_runs[: found.proven_at - 1]).proven_at is None


@pytest.mark.parametrize("seed", range(5))
def test_no_drift_is_not_proven(seed: Any) -> None:
    record, past_runs = past_runs_of(seed, 0.0)
    found = evalues.drift_verdict(record, 4, past_runs)
    assert found.proven_at is None
    assert found.log_e < found.needed


def test_the_luck_of_the_record_counts_once() -> None:
    """Four runs that were lucky in 16 of 60 questions that are right in half of all runs: the product grows by every past run."""
    rng = np.random.default_rng(2)
    record = [4] * 16 + [2] * 44
    past_runs = [(rng.random(60) < 0.5).tolist() for _ in range(32)]
    product = sum(evalues.log_e(exchangeable.tally(record, 4, past_run)) for past_run in past_runs)
    pooled = evalues.drift_verdict(record, 4, past_runs)
    assert product > 2 * math.log(100)
    assert 0 < pooled.log_e < product / 2


def test_runs_that_stopped_early() -> None:
    record, past_runs = past_runs_of(1, 0.02)
    short = [[right if position < 330 else None for position, right in enumerate(past_run)] for past_run in past_runs[:2]]
    table = evalues.drift_verdict(record, 4, [*short, past_runs[2]])
    asked = [3 if position < 330 else 1 for position in range(1319)]
    right = [sum(bool(past_run[position]) for past_run in (*short, past_runs[2])) for position in range(1319)]
    assert table.log_e == evalues.pooled_log_e(record, 4, asked, right)
    with pytest.raises(ValueError, match="argument"):
        evalues.drift_verdict(record, 4, [[True]])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_runs_does_not_matter(seed: int) -> None:
    record, past_runs = past_runs_of(seed, 0.01, count=3, questions=200)
    assert evalues.drift_verdict(record, 4, past_runs).log_e == pytest.approx(
        evalues.drift_verdict(record, 4, past_runs[::-1]).log_e, abs=1e-9
    )
