"""What the simulation of the gates has found: committed, and again with fewer sessions."""

from __future__ import annotations

import json
import random

import pytest
import speed_gates

RATES = [speed_gates.Rate(**entry) for entry in json.loads(speed_gates.RESULTS.read_text())]


def test_committed_rates_are_of_two_thousand_sessions_of_every_gate() -> None:
    assert {rate.sessions for rate in RATES} == {speed_gates.SESSIONS}
    assert {rate.gate for rate in RATES} == {*(case.name for case in speed_gates.CASES), "the whole check"}


def test_a_clean_session_fails_once_in_two_hundred_at_most() -> None:
    assert [rate for rate in RATES if rate.slowdown == 0 and rate.failed > 0.005] == []


def test_a_slowdown_is_found_in_nineteen_of_twenty_from_one_recorded_session() -> None:
    parts = {"kernels, G", "host's part, h"}
    found = [rate.failed for rate in RATES if rate.slowdown > 0 and rate.recorded == 1 and rate.gate in parts]
    assert len(found) == len(parts) * len(speed_gates.NOISE)
    assert min(found) >= 0.95


@pytest.mark.parametrize("case", speed_gates.CASES, ids=lambda case: case.name)
def test_the_gates_of_today_do_what_was_committed(case: speed_gates.Case) -> None:
    clean = speed_gates.simulate(case, "normal", 1, 0.0, 200, random.Random(3))
    slow = speed_gates.simulate(case, "normal", 1, case.slowdown, 200, random.Random(3))
    assert clean.failed <= 0.02
    assert slow.failed >= 0.9
