"""The exact test of sign flips, by enumeration and beside McNemar's; and what a question is worth over many past runs."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llminfer.stats import evalues, exchangeable, paired, sign_flips


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_p_value_is_the_share_of_flips_that_reach_the_sum(changes: list[int]) -> None:
    table = {change: changes.count(change) for change in set(changes)}
    sums = [sum(sign * change for sign, change in zip(signs, changes, strict=True)) for signs in _signs(len(changes))]
    expected = sum(found >= sum(changes) for found in sums) / len(sums)
    assert sign_flips.p_value(table) == pytest.approx(expected, rel=1e-9)


def _signs(count: int) -> itertools.product[tuple[int, ...]]:
    return itertools.product((1, -1), repeat=count)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (7, 0), (6, 1), (30, 18), (3, 9)])
@pytest.mark.parametrize("runs", [1, 4])
def test_beside_one_run_or_copies_it_is_mcnemar(lost: int, won: int, runs: int) -> None:
    counts = exchangeable.from_counts([0] * runs + [lost], [won, *[0] * (runs - 1), 500])
    assert sign_flips.p_value(counts.changes) == pytest.approx(paired.mcnemar_p_value(lost=lost, won=won), rel=1e-9)


def test_three_near_ties_lost_beside_copies_are_no_evidence() -> None:
    counts = exchangeable.from_counts([0, 0, 0, 0, 3], [0, 0, 0, 0, 997])
    assert exchangeable.p_value(counts) == pytest.approx(0.2**3)
    assert sign_flips.p_value(counts.changes) == pytest.approx(0.5**3)


@pytest.mark.parametrize("discordance", [0.0, 0.03, 0.1])
def test_what_is_detectable_is_that_of_mcnemar_with_less_noise(discordance: float) -> None:
    one, four = (sign_flips.smallest_detectable_drop(1319, runs, discordance) for runs in (1, 4))
    assert one == pytest.approx(paired.smallest_detectable_drop(n=1319, discordance=discordance))
    assert four < one or discordance == 0
    assert four >= exchangeable.smallest_detectable_drop(1319, 4, discordance)
    assert four >= 7 / 1319
    assert sign_flips.smallest_detectable_drop(0, 4, discordance) == 1.0


@pytest.mark.parametrize("times", [1, 2, 4, 16, 48])
def test_a_run_that_is_repeated_says_no_more_than_one(times: int) -> None:
    before, lost = [4] * 900 + [2] * 40 + [0] * 60, 12
    now = [number >= lost and number < 900 for number in range(1000)]
    asked, right = [times] * 1000, [times * ok for ok in now]
    once = exchangeable.tally(before, 4, now)
    found = evalues.p_value_of_questions(before, 4, asked, right)
    assert found == pytest.approx(sign_flips.p_value(once.changes), rel=1e-9)


def test_questions_that_were_not_asked_say_nothing() -> None:
    p = evalues.p_value_of_questions([4, 4, 4, 0], 4, [2, 2, 0, 0], [0, 0, 0, 0])
    assert p == pytest.approx(math.pow(0.5, 2))
