"""Records and answers of accuracy that tests make by count."""

from __future__ import annotations

from typing import Any

import numpy as np

from pytest_llminfer.families.accuracy.check import AccuracyTest
from pytest_llminfer.families.accuracy.grading import Answer
from pytest_llminfer.families.accuracy.recorded import Recorded, recorded_runs
from pytest_llminfer.stats import exchangeable, sequential

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


def simulated(rng: Any, drop: float, n: int = 1319, flippy: float = 0.09) -> Any:
    level = np.where(rng.random(n) < flippy, rng.random(n), rng.random(n) < 0.83)
    runs = [
        dict(zip(map(str, range(n)), [RIGHT if right else WRONG for right in rng.random(n) < level], strict=True)) for _ in range(4)
    ]
    fallen = np.where((level == 1) & (rng.random(n) < drop / 0.755), 0.0, level)
    now = dict(zip(map(str, range(n)), [RIGHT if right else WRONG for right in rng.random(n) < fallen], strict=True))
    return recorded_runs(runs, seed=1), now
