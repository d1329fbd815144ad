"""Margins of accuracy that a record supports, and what makes a record."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, cast

import numpy as np
import pytest

from pytest_llminfer.errors import BadInputError
from pytest_llminfer.families.accuracy.check import AccuracyTest
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.margin import plan_margin, supported_margin
from pytest_llminfer.families.accuracy.record import pack, unpack
from pytest_llminfer.families.accuracy.recorded import recorded_runs
from pytest_llminfer.stats import betting, sign_flips
from pytest_llminfer.verdict import Outcome
from tests.support.accuracy_runs import RIGHT, WRONG, answers, go, record, simulated
from tests.support.paths import BASELINES
from tests.support.present import present


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
