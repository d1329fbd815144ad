"""The gate in simulation: what it asks, passes and fails, beside docs/methods.md#power, by 300 runs of each with fixed seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import simulated_past_runs
import simulated_runs
from simulated_past_runs import BOTH, POOLED, History
from simulated_questions import Noise
from simulated_runs import SUPPORTED, Setting

from pytest_llminfer.stats import sequential
from pytest_llminfer.stats.decision import Decision

RUNS = 300


@dataclass(frozen=True)
class Found:
    outcomes: Counter[str]
    asked: float


def simulate(setting: Setting, runs: int = RUNS) -> Found:
    rng = np.random.default_rng(7)
    seen = [simulated_runs.judge(setting, rng) for _ in range(runs)]
    return Found(Counter(outcome for outcome, _ in seen), sum(asked for _, asked in seen) / runs)


@pytest.mark.parametrize(
    ("setting", "asked"),
    [
        (Setting(4, Noise(0.03), margin=0.03), 234),
        (Setting(4, Noise(0.01), margin=0.03), 173),
        (Setting(4, Noise(0.03), margin=0.02), 427),
    ],
    ids=str,
)
def test_where_nothing_changed_a_run_passes_after_a_few_hundred_questions(setting: Setting, asked: float) -> None:
    found = simulate(setting)
    assert found.asked == pytest.approx(asked, rel=0.1)
    assert found.outcomes["pass"] >= 0.97 * RUNS
    assert found.outcomes["fail"] <= 0.02 * RUNS


def test_a_drop_of_two_points_is_found() -> None:
    found = simulate(Setting(4, Noise(0.03), drop=0.02, margin=0.02))
    assert found.outcomes["fail"] >= 0.85 * RUNS
    assert found.outcomes["pass"] <= 0.05 * RUNS


@pytest.mark.parametrize("noise", [Noise(0.0, 0.03), Noise(0.0, 0.06), Noise(0.011, 0.05, redrawn=True)], ids=str)
def test_near_ties_decided_anew_are_no_drop(noise: Noise) -> None:
    """The test of exchangeability takes the record's own noise for all there is, and fails one run in twenty."""
    ours, alone = (simulate(Setting(4, noise, margin=0.03, alone=alone)) for alone in (False, True))
    assert ours.outcomes["fail"] <= 0.02 * RUNS
    assert alone.outcomes["fail"] >= 0.03 * RUNS


@pytest.mark.parametrize("noise", [Noise(0.0), Noise(0.03), Noise(0.03, 0.03, redrawn=True)], ids=str)
def test_a_drop_of_the_margin_hardly_passes(noise: Noise) -> None:
    assert simulate(Setting(4, noise, drop=0.03, margin=0.03)).outcomes["pass"] <= 0.06 * RUNS


@pytest.mark.parametrize("questions", [300, 1000])
def test_few_runs_are_undecided_at_the_margin_that_the_record_supports(questions: int) -> None:
    found = simulate(Setting(4, Noise(0.01), margin=SUPPORTED, questions=questions))
    assert found.outcomes["undecided"] + found.outcomes["fail"] <= 0.05 * RUNS


def test_four_bits_pass_the_margin_that_they_need() -> None:
    """As nf4 of the reference model: 5.7 % of outcomes change, 2.5 points are lost."""
    found = simulate(Setting(4, Noise(0.0, 0.032), drop=0.025, margin=0.06, questions=1000, tolerated=True))
    assert found.outcomes["pass"] >= 0.9 * RUNS
    assert found.outcomes["fail"] <= 0.01 * RUNS


def test_frozen_runs_are_one_observation() -> None:
    """A deterministic engine repeats one draw: the pooled e-value alone calls it drifting in a fifth of histories."""
    frozen = simulated_past_runs.first_proofs((History(4, Noise(0.03), frozen=True, past_runs=48), 60, 3))
    called = {rule: sum(number > 0 for number in first) for rule, first in frozen.items()}
    assert called[POOLED] >= 6
    assert called[BOTH] <= 2
    drifting = simulated_past_runs.first_proofs((History(4, Noise(0.03), 0.02, past_runs=24), 30, 3))
    assert sum(number > 0 for number in drifting[BOTH]) >= 24


@pytest.mark.parametrize("questions", [1, 3, 9, 100, 300, 1000, 1319])
def test_fail_has_eight_looks_on_the_grid_of_pass(questions: int) -> None:
    looks = Decision(questions, margin=0.02).looks
    assert looks[-1] == questions
    assert list(looks) == sorted(set(looks))
    if questions >= 8 * 32:
        assert all(look % 32 == 0 for look in looks[:-1])
    else:
        assert set(sequential.chunks(questions)) <= set(looks)
    assert Decision(questions, margin=0.02, looks=1).looks == (questions,)
