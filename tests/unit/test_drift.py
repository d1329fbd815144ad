"""Past runs against one record: what is proven stays proven until it is mended, and no longer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_llminfer.baselines import run_history
from pytest_llminfer.errors import BaselineError
from pytest_llminfer.families.accuracy.drift import check_drift
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.recorded import recorded_runs
from pytest_llminfer.verdict import Outcome

if TYPE_CHECKING:
    from pathlib import Path

N = 1000
IDS = [f"q{number}" for number in range(N)]
RIGHT, WRONG = Answer(strict=True, flexible=True, tokens=50), Answer(strict=False, flexible=False, tokens=50)


def past_run_of(drawn: random.Random, *, lost: int = 0) -> dict[str, Answer]:
    """Forty questions right in half of the runs (d = 2 %), 850 always but for the first ``lost`` of them, the rest never."""
    outcomes = [drawn.random() < 0.5 if number < 40 else 40 + lost <= number < 890 for number in range(N)]
    return {name: RIGHT if right else WRONG for name, right in zip(IDS, outcomes, strict=True)}


class RunHistory:
    """Past runs added as a session adds them, each judged with those before it."""

    def __init__(self, path: Path, drawn: random.Random) -> None:
        self.path, self.drawn = path, drawn
        self.recorded = recorded_runs([past_run_of(drawn) for _ in range(4)], seed=1)

    def add(self, *, lost: int = 0) -> Outcome:
        answers = past_run_of(self.drawn, lost=lost)
        outcomes = "".join("1" if answers[name].flexible else "0" for name in self.recorded.flexible)
        before = [past_run.outcomes for past_run in run_history.read(self.path, entry="e", record="r")]
        run_history.append(self.path, run_history.PastRun("e", "r", "2026-01-01T00:00:00Z", outcomes, 0.5, 0.0))
        return check_drift(recorded=self.recorded, past_runs=[*before, outcomes]).outcome

    def mend(self, **fields: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"mended": "the kernel is as it was", **fields}) + "\n")


@pytest.fixture(params=[1, 2, 3])
def past_runs(request: pytest.FixtureRequest, tmp_path: Path) -> RunHistory:
    return RunHistory(tmp_path / "run_history.jsonl", random.Random(request.param))


def test_one_bad_run_is_outweighed_by_good_runs_after_it(past_runs: RunHistory) -> None:
    before = [past_runs.add() for _ in range(5)]
    bad = past_runs.add(lost=100)
    after = [past_runs.add() for _ in range(60)]
    assert set(before) == {Outcome.PASS}
    assert bad is Outcome.FAIL
    assert set(after[10:]) == {Outcome.PASS}


def test_a_drift_that_lasts_stays_proven_until_a_line_says_that_it_is_mended(past_runs: RunHistory) -> None:
    seen = [past_runs.add(lost=20) for _ in range(24)]
    assert seen[8:] == [Outcome.FAIL] * 16
    past_runs.mend(entry="another")
    assert past_runs.add() is Outcome.FAIL
    past_runs.mend()
    assert {past_runs.add() for _ in range(24)} == {Outcome.PASS}
    # A line is no pardon for what comes after it.
    past_runs.mend(entry="e")
    assert [past_runs.add(lost=20) for _ in range(24)][-1] is Outcome.FAIL


def test_the_verdict_names_the_way_out(past_runs: RunHistory) -> None:
    verdict = check_drift(recorded=past_runs.recorded, past_runs=["0" * N])
    assert 'the line {"mended": "<what was done>"}, appended to the run history' in verdict.advice
    assert "a drift of 1 point within 90 runs in 42 % of histories" in verdict.smallest_detectable


def test_a_line_that_is_neither_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run_history.jsonl"
    path.write_text('{"mend": "x"}\n')
    with pytest.raises(BaselineError, match="line 1 is no past run"):
        run_history.read(path, entry="e", record="r")


@pytest.mark.parametrize("before", ['{"mended": "x"}', '{"mended": "x"}\n'])
def test_a_last_line_without_an_end_takes_no_past_run_into_it(tmp_path: Path, before: str) -> None:
    path = tmp_path / "run_history.jsonl"
    path.write_text(before)
    run = run_history.PastRun(entry="e", record="r", date="2026-01-01T00:00:00Z", outcomes="1", p_value=1.0, log_e=0.0)
    for _ in range(2):
        run_history.append(path, run)
    assert run_history.read(path, entry="e", record="r") == [run, run]
    assert len(path.read_text().splitlines()) == 3
